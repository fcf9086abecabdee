"""A lock on the cores of one machine: many processes may compute at once, but a measurement runs alone.

Two advisory file locks, shared by all processes of the user on this machine. Computing processes hold the "cores"
lock shared, for one short piece of work at a time; a measurement holds it exclusively. A measurement locks
the "gate" first; each piece of work locks it for a moment before it starts, so that short pieces cannot starve a
measurement. The kernel drops the locks of a killed process, so nothing has to be cleaned up.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs


class MeasurementLock:
    """Locks this machine's cores, shared for computing and exclusively for measuring.

    Args:
        folder: where the lock files lie; None is the user's cache folder. On a shared disk each host has its own.

    Attributes:
        waited: seconds spent waiting for the lock so far.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder if folder is not None else platformdirs.user_cache_path("autocompress") / "turns"
        self._folder.mkdir(parents=True, exist_ok=True)
        self.waited = 0.0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Held for one piece of work (a training step, a batch); others may compute too, none measures."""
        begin = time.perf_counter()
        with self._lock("gate", fcntl.LOCK_SH):
            cores = self._open("cores")
            fcntl.flock(cores, fcntl.LOCK_SH)
        self.waited += time.perf_counter() - begin
        try:
            yield
        finally:
            os.close(cores)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Held for one measurement; no other process computes or measures."""
        begin = time.perf_counter()
        with self._lock("gate", fcntl.LOCK_EX), self._lock("cores", fcntl.LOCK_EX):
            self.waited += time.perf_counter() - begin
            yield

    @contextmanager
    def _lock(self, name: str, kind: int) -> Iterator[None]:
        handle = self._open(name)
        try:
            fcntl.flock(handle, kind)
            yield
        finally:
            os.close(handle)

    def _open(self, name: str) -> int:
        return os.open(self._folder / f"{platform.node()}.{name}", os.O_RDWR | os.O_CREAT, 0o600)
