"""Where the target runtime runs: files are loaded, timed and judged there."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from autocompress.latency import PairedTiming, time_sessions
from autocompress.runtimes import Session, runtime_named
from autocompress.task import Inputs


class TargetDevice(Protocol):
    """Where the target runtime runs.

    Attributes:
        is_here: whether it is the driver's machine.
    """

    is_here: bool

    def load(self, file: Path) -> Session:
        """Loads a runtime's file there; see `Runtime.load`."""

    def time(
        self, candidate: Session, reference: Session, inputs: Inputs, n_rounds: int, idle_ms: float | None = None
    ) -> PairedTiming:
        """Times two sessions of this device against each other; see `time_sessions`."""


class LocalDevice:
    """See `TargetDevice`."""

    is_here = True

    def __init__(self, runtime: str, n_threads: int) -> None:
        self._runtime, self._n_threads = runtime_named(runtime), n_threads

    def load(self, file: Path) -> Session:
        """See `TargetDevice`."""
        return self._runtime.load(file, self._n_threads)

    def time(
        self, candidate: Session, reference: Session, inputs: Inputs, n_rounds: int, idle_ms: float | None = None
    ) -> PairedTiming:
        """See `TargetDevice`."""
        return time_sessions(candidate, reference, inputs, n_rounds, idle_ms=idle_ms)
