"""A search's minutes, on a clock that the test sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.execution.run_clock import RunClock


class Now:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_the_minutes_are_shared_in_their_order() -> None:
    now = Now()
    clock = RunClock(10.0, 0.4, now)
    assert (clock.seconds, clock.sensitivity_seconds) == (600.0, 60.0)
    now.seconds += 40.0
    clock.begin_trials()
    assert (clock.exploration_left, clock.training_left) == (pytest.approx(300.0), pytest.approx(500.0))
    now.seconds += 299.0
    assert clock.elapsed == 339.0 and clock.explores and clock.trains
    now.seconds += 2.0
    assert clock.exploration_left == 0.0 and not clock.explores and clock.trains, "the polish begins"
    assert clock.training_left == pytest.approx(199.0)
    now.seconds += 200.0
    assert clock.training_left == 0.0 and not clock.trains, "the end begins"


def test_without_minutes_nothing_ends_by_the_clock() -> None:
    now = Now()
    clock = RunClock(None, 0.4, now)
    now.seconds += 1e9
    assert clock.explores and clock.trains
    left = (clock.seconds, clock.sensitivity_seconds, clock.exploration_left, clock.training_left)
    assert left == (None, None, None, None)


@given(st.floats(0.01, 1000.0), st.floats(0.0, 0.8), st.floats(0.0, 2.0))
def test_exploration_is_over_no_later_than_training(minutes: float, share: float, passed: float) -> None:
    now = Now()
    clock = RunClock(minutes, share, now)
    now.seconds += passed * 60 * minutes
    assert clock.exploration_left is not None and clock.training_left is not None
    assert 0.0 <= clock.exploration_left <= clock.training_left <= 54 * minutes + 1e-6
    assert clock.trains or not clock.explores


def test_the_end_gets_what_it_is_expected_to_take_within_limits() -> None:
    now = Now()
    clock = RunClock(10.0, 0.5, now)
    for expected, kept in ((0.0, 60.0), (100.0, 100.0), (1e6, 210.0)):
        clock.end_seconds = expected
        assert clock.training_left == pytest.approx(600.0 - kept)
        assert clock.exploration_left == pytest.approx((600.0 - kept) / 2)
