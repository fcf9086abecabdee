"""The learning rate over a fine-tune, of one length and of one that changes."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from autocompress.distillation.schedule import CosineSchedule


@given(st.integers(10, 500))
def test_rises_over_a_tenth_then_falls_as_a_half_cosine(n_steps: int) -> None:
    schedule = CosineSchedule(n_steps)
    factors = [schedule.factor(step) for step in range(n_steps)]
    top = factors.index(max(factors))
    assert all(a < b for a, b in pairwise(factors[: top + 1]))
    assert all(a > b for a, b in pairwise(factors[top:]))
    assert 0 < factors[0] <= max(factors) <= 1 and top <= math.ceil(n_steps / 10)
    half = 0.1 * n_steps + 0.45 * n_steps  # half of what follows the rise
    if half == int(half):
        assert abs(schedule.factor(int(half)) - 0.5) < 1e-9
    assert schedule.factor(n_steps) < 1e-9


@given(st.integers(20, 300), st.integers(1, 299), st.integers(1, 600))
def test_a_moved_end_changes_no_rate_at_once_and_still_ends_at_zero(n_steps: int, step: int, more: int) -> None:
    step = min(step, n_steps - 1)
    schedule = CosineSchedule(n_steps)
    share = schedule.state_dict()
    schedule.end_at(step + more, step)
    again = CosineSchedule(7)
    again.load_state_dict(schedule.state_dict())
    assert share != schedule.state_dict()
    assert [again.factor(s) for s in range(step, step + more)] == [schedule.factor(s) for s in range(step, step + more)]
    if step >= 0.2 * n_steps and more >= 10:
        assert abs(schedule.factor(step) - CosineSchedule(n_steps).factor(step)) < 0.15
        factors = [schedule.factor(s) for s in range(step, step + more + 1)]
        assert factors == sorted(factors, reverse=True), "only the rise would go up"
    assert schedule.factor(step + more) < 1e-9
