"""Temporary folders that are removed when their process ends, or by a later process if it was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

_PREFIX = "autocompress-"
_LOCK = ".lock"


class LockedTempDir:
    """A new folder among the system's temporary ones, removed at the end; a context manager.

    Its owner holds a lock on a file in it, which the kernel drops when the process ends, however it ends. Making or
    closing one also removes those whose owners are gone.

    Args:
        base: folder to make it in; by default the system's one for temporary files.

    Attributes:
        path: of the folder.
    """

    def __init__(self, base: Path | None = None) -> None:
        base = base or Path(tempfile.gettempdir())
        _sweep(base)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        self._lock = _locked(self.path / f"{_LOCK}.new")
        (self.path / f"{_LOCK}.new").rename(self.path / _LOCK)  # from now on the next may look: it is locked already

    def __enter__(self) -> LockedTempDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        _sweep(self.path.parent)


def _sweep(folder: Path) -> None:
    for path in folder.glob(f"{_PREFIX}*"):
        # one without a lock file is being made at this moment
        if (path / _LOCK).is_file() and (lock := _locked(path / _LOCK)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _locked(file: Path) -> int | None:
    """A handle that holds the lock; None when another process does, or the file is not ours."""
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
