"""Files of a run: atomic writes, JSON that names its file when it is damaged, and digests."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from autocompress.errors import InputError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes the whole file or leaves the old one, also when the process or the machine stops in between.

    Several processes may write the same path at the same time: the last one wins.

    Args:
        path: in an existing folder.
        content: text is written as UTF-8.

    Raises:
        OSError: the disk refuses the file; the old one is whole.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


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
    if not isinstance(data, dict):
        raise InputError(f"{path} is damaged: the {what} must hold a JSON object, but it holds {type(data).__name__}")
    return data


def digest_of(content: str | bytes, n_digits: int = 64) -> str:
    """The first hex digits of SHA-256; text is encoded as UTF-8.

    Args:
        content: hashed as it is.
        n_digits: 1 to 64.
    """
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:n_digits]
