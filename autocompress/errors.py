"""The errors a user can meet: one base class, and one subclass for each kind of way out."""

from __future__ import annotations

from typing import Any


class AutocompressError(Exception):
    """Base of every error that autocompress raises on purpose; the command line prints it and exits with 2."""


class InputError(AutocompressError, ValueError):
    """Something the user gave breaks a rule; the message names the rule, the value and the way out."""


class MissingDataError(AutocompressError, FileNotFoundError):
    """Data or weights that a ready-made task needs are not on this machine."""


class MissingExtraError(AutocompressError, ImportError):
    """An optional package is needed; the message names the extra to install."""


class CompressionError(AutocompressError, RuntimeError):
    """A candidate cannot be applied to this model."""


class ExportError(AutocompressError, RuntimeError):
    """A model cannot be written for, or run by, the target runtime."""


class MeasurementError(AutocompressError, RuntimeError):
    """A latency or a metric could not be measured in a way that can be trusted."""


class StorageError(AutocompressError, OSError):
    """The disk of a run takes no more; what is on it is whole, and `resume` continues from there."""


class StoppedError(AutocompressError):
    """A signal stopped the search; what it reached is written, and the message says how to continue.

    Args:
        message: for the user.
        number: of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
        self.front: Any = None  # a `ParetoFront`, once it is known


class WorkerError(AutocompressError, RuntimeError):
    """A worker cannot run trials on its machine; the message names the machine and why."""
