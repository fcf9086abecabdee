"""Files of a run: atomic writes, JSON that names its file when it is damaged, and digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from autocompress.errors import InputError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes the whole file or leaves the old one, also when the process or the machine stops in between.

    Several processes may write the same path at the same time: the last one wins.

    Args:
        path: in an existing folder.
        content: text is written as UTF-8; half characters, as in paths that are no UTF-8, as their codes.

    Raises:
        OSError: the disk refuses the file; the old one is whole.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as stream:
            stream.write(_bytes(content))
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def check_new_folder(path: Path) -> None:
    """Tries whether a folder can be made and written to, and leaves nothing.

    Raises:
        InputError: it exists, or the system refuses it: a file is in the way, no permission, a full disk.
    """
    missing = [path, *(parent for parent in path.absolute().parents if not parent.exists())]
    made: list[Path] = []
    try:
        for folder in reversed(missing):
            folder.mkdir()
            made.append(folder)
        probe = path / "probe"
        try:
            write_atomically(probe, b"\0" * 4096)
        finally:
            probe.unlink(missing_ok=True)
    except FileExistsError as error:
        raise InputError(f"{path} must be a new folder, but {error.filename} exists; name another one") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} must be a folder that can be made and written to, but: {error}") from error
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_new_file(path: Path) -> None:
    """Tries whether a file can be written; one that is there stays as it is.

    Raises:
        InputError: its folder does not exist, a folder is in its place, or the system refuses it.
    """
    if path.is_dir():
        raise InputError(f"{path} must be a file, but is a folder")
    probe = path.with_name(f"{path.name}.{os.getpid()}.probe")
    try:
        write_atomically(probe, b"\0" * 4096)
        probe.unlink()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} must be a file that can be written, but: {error}") from error


def path_inside(folder: Path, name: object) -> Path:
    """The path of a file that another file names: in the folder itself, and no link.

    Raises:
        InputError: the name is no plain name, or leads elsewhere.
    """
    if not isinstance(name, str) or not name or Path(name).name != name or "\0" in name or name == "..":
        raise InputError(f"{folder} must name files in itself, but one is {str(name)[:80]!r}; the folder was edited")
    path = folder / name
    if path.is_symlink():
        raise InputError(f"{path} must be a plain file, but is a link; the folder was edited")
    return path


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text without control characters, which a terminal would obey: they are shown by their codes."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _bytes(content: str | bytes) -> bytes:
    return content.encode(errors="backslashreplace") if isinstance(content, str) else content


def read_json(path: Path, what: str = "JSON file") -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: of the file.
        what: the kind of file, for the message, such as "manifest".

    Raises:
        InputError: the file is missing, unreadable, no JSON or no JSON object; names the file, and the line if known.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"the {what} {path} must exist, but does not") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is damaged: line {error.lineno} is not JSON ({error.msg}); the {what} is cut off or was edited"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: the {what} must be readable UTF-8 text, but: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: the {what} is nested too deeply or has too long a number") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} is damaged: the {what} must hold a JSON object, but it holds {type(data).__name__}")
    return data


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(content: str | bytes, n_digits: int = 64) -> str:
    """The first hex digits of SHA-256; text is encoded as UTF-8.

    Args:
        content: hashed as it is.
        n_digits: 1 to 64.
    """
    return hashlib.sha256(_bytes(content)).hexdigest()[:n_digits]
