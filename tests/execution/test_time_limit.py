"""A trial's time limit: raised inside the work, summed over pieces, and gone afterwards."""

from __future__ import annotations

import contextlib
import signal
import time

import pytest

from autocompress.execution.time_limit import TimeLimit, TimeLimitError


def work(seconds: float) -> None:
    """Computes in Python, and handles its own errors."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):  # must not swallow the limit
            sum(range(1000))


def test_work_that_takes_too_long_is_ended() -> None:
    limit, begin = TimeLimit(0.2 / 60), time.monotonic()
    with pytest.raises(TimeLimitError, match="trial_minutes = 0.00333333"), limit.running():
        work(60)
    assert time.monotonic() - begin < 30


def test_pieces_of_work_share_the_time() -> None:
    limit = TimeLimit(1.0 / 60)
    with limit.running():
        work(0.6)
    with pytest.raises(TimeLimitError), limit.running():
        work(60)


def test_outside_nothing_is_limited() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with TimeLimit(0.3 / 60).running():
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before
    work(0.4)


def test_no_limit_sets_no_alarm() -> None:
    with TimeLimit(None).running():
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
