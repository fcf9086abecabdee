"""The order of Pareto ranks against brute force, which trials continue, and the value of a stopped trial."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import TrialScheduler

from autocompress.execution.scheduler import ParetoScheduler
from autocompress.results.records import Latency, Rung, TrialRecord
from autocompress.sampling import early_stopping
from autocompress.sampling.early_stopping import (
    ParetoEarlyStopping,
    expected_score,
    front_numbers,
    pareto_order,
)
from autocompress.space.candidate import Candidate
from tests.shared.objectives import of_accuracy

points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=9)


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and a != b


@given(points)
def test_a_point_comes_after_all_that_dominate_it(costs: list[tuple[int, int]]) -> None:
    places = pareto_order(np.array(costs, dtype=float), None)
    assert sorted(places) == list(range(len(costs)))
    for i, a in enumerate(costs):
        for j, b in enumerate(costs):
            if dominates(a, b):
                assert places[i] < places[j]


@given(points, st.integers(0, 6))
def test_whoever_is_within_the_budget_comes_first(costs: list[tuple[int, int]], budget: int) -> None:
    places = pareto_order(np.array(costs, dtype=float), float(budget))
    ordered = [costs[i][0] for i in np.argsort(places)]
    excesses = [max(0, latency - budget) for latency in ordered]
    assert excesses == sorted(excesses)


@given(points)
def test_fronts_are_those_of_peeling_off_one_after_the_other(costs: list[tuple[int, int]]) -> None:
    left, number, expected = set(range(len(costs))), 0, {}
    while left:
        front = {i for i in left if not any(dominates(costs[j], costs[i]) for j in left)}
        expected |= dict.fromkeys(front, number)
        left, number = left - front, number + 1
    assert list(front_numbers(np.array(costs, dtype=float))) == [expected[i] for i in range(len(costs))]


def test_within_a_front_the_ends_and_the_lonely_come_first() -> None:
    front = np.array([[0.0, 4.0], [1.9, 2.1], [2.0, 2.0], [2.1, 1.9], [4.0, 0.0]])
    places = pareto_order(front, None)
    assert set(np.flatnonzero(places < 2)) == {0, 4}


def test_nan_comes_last() -> None:
    assert list(pareto_order(np.array([[math.nan, 0.0], [9.0, 9.0]]), None)) == [1, 0]


def by_rank(budget: float | None) -> ParetoEarlyStopping:
    """A rule that lets the better half continue, and has seen the first trials, which always finish."""
    rule = ParetoEarlyStopping(of_accuracy(budget), keep_fraction=0.5)
    for i in range(5):
        assert rule.should_continue(f"before {i}", -1, -float(i), 0.5), (
            "the first trials continue, whatever their metric"
        )
    return rule


def test_half_of_equally_spread_trials_go_on() -> None:
    rule = by_rank(None)
    rng = np.random.default_rng(0)
    on = [rule.should_continue(str(i), 20, float(rng.random()), 0.5) for i in range(200)]
    assert on[0], "the first one has nothing above it"
    assert 0.4 < np.mean(on) < 0.6
    assert all(rule.should_continue(str(i), 0, float(rng.random()), 0.5) for i in range(200)), "not before training"


def test_an_exemption_survives_the_loss_of_a_worker_and_the_drivers_restart() -> None:
    """Names stay the same on another worker, and so do the first trials of a run."""
    rule = ParetoEarlyStopping(of_accuracy(), keep_fraction=0.5)
    for i in range(8):
        rule.should_continue(f"trial_{i:04}", 0, 0.9 - i / 10, 0.4)
    for i in (7, 4):  # these were restarted, and are judged before the others
        assert rule.should_continue(f"trial_{i:04}", 0, 0.9 - i / 10, 0.4)
    assert [rule.should_continue(f"trial_{i:04}", 20, 0.9 - i / 10, 0.4) for i in range(8)] == [True] * 5 + [False] * 3
    resumed = ParetoEarlyStopping(of_accuracy(), keep_fraction=0.5)
    resumed.learn([record(i, "complete", [0.9, 0.95]) for i in range(3)])
    continues = []
    for i in range(3, 7):
        resumed.should_continue(f"trial_{i:04}", 0, 0.1, 0.4)
        continues.append(resumed.should_continue(f"trial_{i:04}", 20, 0.1 - i / 100, 0.4))
    assert continues == [True, True, False, False]


def test_rungs_are_apart_and_nan_never_goes_on() -> None:
    rule = by_rank(0.5)
    assert rule.should_continue("a", 20, 0.9, 0.4)
    assert not rule.should_continue("b", 20, 0.1, 0.45)
    assert rule.should_continue("c", 60, 0.1, 0.45), "nobody was judged at this rung before"
    assert not rule.should_continue("d", 0, math.nan, 0.3)
    assert not rule.should_continue("d", 20, math.nan, 0.3)
    assert not rule.should_continue("e", 20, 0.99, 0.7), "over the budget comes after all others"


def record(number: int, state: str, values: list[float], latency: float = 0.4) -> TrialRecord:
    rungs = tuple(Rung(20 * i, {"accuracy": value}) for i, value in enumerate(values))
    return TrialRecord(
        number,
        state,  # type: ignore[arg-type]
        "sampler",
        Candidate(),
        metrics={"accuracy": max(values)},
        latency=Latency(latency, 0.0, 1.0, 9),
        rungs=rungs,
    )


def test_a_resumed_run_remembers_the_rungs() -> None:
    rule = ParetoEarlyStopping(of_accuracy(), keep_fraction=0.5)
    rule.learn([record(i, "complete", [0.9, 0.95]) for i in range(5)])
    assert not rule.should_continue("a", 20, 0.5, 0.4)
    assert ParetoEarlyStopping(of_accuracy(), keep_fraction=0.5).should_continue("a", 20, 0.5, 0.4)


def test_a_stopped_trial_is_told_as_what_it_would_probably_have_reached() -> None:
    others = [record(i, "complete", [0.5 + i / 20, 0.8 + i / 40]) for i in range(8)]
    stopped = record(99, "stopped", [0.4])
    expected = expected_score(stopped, others, of_accuracy())
    assert expected == pytest.approx(0.75), "the line through the others: 0.55 + 0.5 x"
    assert expected > 0.4, "and so not as bad as it looked when it was stopped"
    assert expected_score(stopped, others[:4], of_accuracy()) == 0.4, "too few to go by"
    assert expected_score(others[0], others, of_accuracy()) == 0.8
    good = record(98, "stopped", [0.99])
    assert expected_score(good, others, of_accuracy()) >= 0.99


def test_where_training_always_hurts_it_is_what_was_reached() -> None:
    others = [replace(record(i, "complete", [0.9, 0.2]), metrics={"accuracy": 0.2}) for i in range(8)]
    assert expected_score(record(99, "stopped", [0.6]), others, of_accuracy()) == 0.6


def test_the_scheduler_asks_after_each_rung_and_lets_ended_trials_end() -> None:
    rule = by_rank(None)
    scheduler = ParetoScheduler(rule, "accuracy")

    def result(name: str, value: float, steps: int = 20, polish_steps: int = 0, **more: object) -> str:
        given = {"steps": steps, "latency_ratio": 0.4, "metrics/accuracy": value, "done": False, **more}
        trial = SimpleNamespace(config={"name": name, "polish_steps": polish_steps})
        return scheduler.on_trial_result(None, trial, given)  # type: ignore[arg-type]

    assert result("a", 0.9) == TrialScheduler.CONTINUE
    assert result("b", 0.1) == TrialScheduler.STOP
    assert result("a", 0.9, 60) == TrialScheduler.CONTINUE, "its next rung, where it is the first"
    assert result("p", 0.0, polish_steps=300) == TrialScheduler.CONTINUE, "a polish"
    assert result("c", 0.0, done=True) == TrialScheduler.CONTINUE
    failed = {"failed": "Traceback", "done": True}
    assert scheduler.on_trial_result(None, SimpleNamespace(), failed) == TrialScheduler.CONTINUE  # type: ignore[arg-type]


def test_in_a_long_search_the_latest_trials_set_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_stopping, "_LATEST", 8)
    rule = by_rank(None)
    for i in range(8):
        rule.should_continue(f"good {i}", 20, 0.9 + i / 100, 0.4)
    assert not rule.should_continue("a", 20, 0.5, 0.4)
    for i in range(8):
        rule.should_continue(f"bad {i}", 20, 0.1 + i / 100, 0.4)
    assert rule.should_continue("b", 20, 0.5, 0.4)
