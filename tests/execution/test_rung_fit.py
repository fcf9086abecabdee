"""The exploration's fine-tunes are shortened where few trials would fit into the minutes."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from autocompress.execution.rung_fit import LEAST_TRIALS, fitted_rungs, training_step_seconds
from tests.execution.test_trial import context_of

RUNGS = (0, 20, 60, 180)


def test_rungs_stay_where_there_is_time_and_get_fewer_where_there_is_not() -> None:
    cheap = {"step_seconds": 0.01, "other_seconds": 1.0, "n_workers": 2}
    assert fitted_rungs(RUNGS, seconds=600, **cheap) == RUNGS  # type: ignore[arg-type]
    dear = {"step_seconds": 1.0, "other_seconds": 10.0, "n_workers": 2}
    assert fitted_rungs(RUNGS, seconds=600, **dear) == (0, 20, 60)  # type: ignore[arg-type]
    assert fitted_rungs(RUNGS, seconds=60, **dear) == (0, 20)  # type: ignore[arg-type]


@given(st.floats(1e-4, 10), st.floats(0, 100), st.floats(0, 1e5), st.integers(1, 64))
def test_more_time_never_gives_shorter_fine_tunes(step: float, other: float, seconds: float, workers: int) -> None:
    found = fitted_rungs(RUNGS, step, other, seconds, workers)
    assert found == RUNGS[: len(found)] and len(found) >= 2
    assert len(fitted_rungs(RUNGS, step, other, 2 * seconds, workers)) >= len(found)
    if len(found) > 2:
        assert LEAST_TRIALS * (0.6 * found[-1] * step + other) <= seconds * workers * (1 + 1e-9)


def test_timing_a_step_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    context = context_of(tmp_path, rungs=(0, 2))
    before = {name: value.clone() for name, value in context.model.state_dict().items()}
    n_threads = torch.get_num_threads()
    assert 0 < training_step_seconds(context) < 60
    assert torch.get_num_threads() == n_threads
    assert all(torch.equal(before[name], value) for name, value in context.model.state_dict().items())
