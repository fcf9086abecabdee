"""Scratch folders that outlive no process: what a killed one left behind is removed by the next."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

_PREFIX = "autocompress-"
MARKER = ".autocompress-scratch"
"""The file inside that says that a folder is scratch; its owner holds a lock on it."""
_TEXT = "A scratch folder of autocompress: removed when the process that made it has ended.\n"


class LockedTempDir:
    """A new folder among the system's temporary ones, for this user only, removed at the end; a context manager.

    Its owner holds a lock on a marker file in it, which the kernel drops when the process ends, however it ends. Making
    or closing one also removes those of this user whose owners are gone. A folder without the marker is never removed.

    Args:
        base: folder to make it in; by default the system's one for temporary files.

    Attributes:
        path: of the folder.
    """

    def __init__(self, base: Path | None = None) -> None:
        base = base or Path(tempfile.gettempdir())
        _sweep(base)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        draft = self.path / f"{MARKER}.new"
        draft.write_text(_TEXT, encoding="utf-8")
        self._lock = _locked(draft)
        draft.rename(self.path / MARKER)  # from now on the next may look: it is locked already

    def __enter__(self) -> LockedTempDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes the folder."""
        if self._lock is None:
            return
        _remove(self.path)
        os.close(self._lock)
        self._lock = None
        _sweep(self.path.parent)


def _sweep(folder: Path) -> None:
    for path in folder.glob(f"{_PREFIX}*"):
        if _is_scratch(path) and (lock := _locked(path / MARKER)) is not None:
            _remove(path)
            os.close(lock)


def _is_scratch(path: Path) -> bool:
    """Whether this user's `LockedTempDir` made the folder; one without a marker is being made, or is not ours."""
    try:
        if path.is_symlink() or (path / MARKER).is_symlink() or path.stat().st_uid != os.getuid():
            return False
        with (path / MARKER).open("rb") as file:
            return file.read(len(_TEXT) + 1) == _TEXT.encode()
    except OSError:
        return False


def _remove(path: Path) -> None:
    """Removes the marker last, so that what a kill leaves in between is still known as scratch."""
    with contextlib.suppress(OSError):
        for inside in path.iterdir():
            if inside.is_dir() and not inside.is_symlink():
                shutil.rmtree(inside, ignore_errors=True)
            elif inside.name != MARKER:
                inside.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _locked(file: Path) -> int | None:
    """A handle that holds the lock; None when another process does, or the file is not ours."""
    try:
        handle = os.open(file, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
