"""How many steps fit before a deadline."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autocompress.execution.deadline import Deadline


class Clock:
    """A clock that is set by hand."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_steps_that_cost_what_was_expected_leave_the_plan() -> None:
    clock = Clock()
    deadline = Deadline(100, clock)
    clock.seconds = 20.0
    assert deadline.n_steps(20, 86, step_seconds=1.0, to_come=8.0) == 86  # 100 - 6 of reserve - 20 - 8
    assert deadline.n_steps(20, 88, step_seconds=1.0, to_come=8.0) == 88, "nearly right is right"


def test_slow_steps_are_fewer_and_fast_ones_more() -> None:
    clock = Clock()
    deadline = Deadline(100, clock)
    clock.seconds = 20.0
    assert deadline.n_steps(20, 86, step_seconds=2.0, to_come=8.0) == 20 + 33
    assert deadline.n_steps(20, 86, step_seconds=0.8, to_come=8.0) == 20 + 82
    assert deadline.n_steps(20, 86, step_seconds=0.1, to_come=8.0) == 20 + 99, "not by more than half at once"


@given(st.floats(10, 1e4), st.floats(0.01, 20), st.floats(0.01, 20), st.integers(40, 4000))
def test_a_fine_tune_ends_before_the_deadline_whatever_its_pace(
    seconds: float, early: float, late: float, planned: int
) -> None:
    clock = Clock()
    deadline, step = Deadline(seconds, clock), 0
    while step < planned:
        chunk = min(25, planned - step)
        pace = early if step < 100 else late
        clock.seconds += chunk * pace
        step += chunk
        planned = deadline.n_steps(step, planned, pace, to_come=1.0)
    over = clock.seconds - seconds
    assert over <= 25 * max(early, late), "at most what passes between two looks"


def test_no_time_left_ends_at_once() -> None:
    clock = Clock()
    deadline = Deadline(10, clock)
    clock.seconds = 30.0
    assert deadline.n_steps(25, 400, 1.0, 0.0) == 25
