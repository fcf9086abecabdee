"""Ends work that takes too long: first by an exception that says where it was, then by ending the process."""

from __future__ import annotations

import faulthandler
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_GRACE_SECONDS = 5.0
_STDERR = 2


class TimeLimitError(BaseException):
    """The time is over. No subclass of `Exception`, so that a task's own error handling does not swallow it."""


class TimeLimit:
    """Time for several pieces of work together, counted while one of them runs; for the main thread only.

    Code that is deaf to the exception (it blocks the signal, or never comes back to Python) is ended with the process
    some seconds later; a watchdog thread in C then writes where every thread was to the standard error.

    Args:
        minutes: for all pieces together; None is no limit.
    """

    def __init__(self, minutes: float | None) -> None:
        self._minutes = minutes
        self._left = 0.0 if minutes is None else 60 * minutes

    @contextmanager
    def running(self) -> Iterator[None]:
        """One piece of work.

        Raises:
            TimeLimitError: raised inside the work when the time is over.
        """
        if self._minutes is None:
            yield
            return
        begin = time.monotonic()
        previous = signal.signal(signal.SIGALRM, self._over)
        faulthandler.dump_traceback_later(self._left + _GRACE_SECONDS, exit=True, file=_STDERR)
        signal.setitimer(signal.ITIMER_REAL, max(self._left, 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, previous)
            self._left = max(0.0, self._left - (time.monotonic() - begin))

    def _over(self, signum: int, frame: FrameType | None) -> None:
        raise TimeLimitError(f"a trial may take trial_minutes = {self._minutes:g}, and this one was not done by then")
