"""Objectives: signs are turned in one place, for metrics that are maximised and minimised alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError
from autocompress.results.objectives import (
    Objectives,
    budget_ratio,
    budget_ratios,
    default_limit,
    metric_directions,
    ratio,
)
from autocompress.results.pareto import front_of
from autocompress.results.records import Latency, Rung, TrialRecord
from autocompress.sampling.early_stopping import ParetoEarlyStopping, Patience
from autocompress.space.candidate import Candidate

UP = Objectives("accuracy", reference_ms=2.0, metric_limit=0.5)
DOWN = Objectives("perplexity", "minimize", reference_ms=2.0, metric_limit=40.0)


def record(number: int, latency: float, **metrics: float) -> TrialRecord:
    candidate = Candidate({"a": number / 1000}) if number else Candidate()
    return TrialRecord(
        number, "complete", "sampler", candidate, metrics, Latency(latency, 0.01, 2 * latency, 9), feasible=True
    )


@given(st.lists(st.tuples(st.floats(0.05, 1.5), st.floats(1.0, 60.0)), min_size=1, max_size=25))
def test_a_minimised_metric_gives_the_front_of_its_negation(points: list[tuple[float, float]]) -> None:
    """Brute force over pairs: a point is on the front when no other is at most as slow and at most as perplexed."""
    records = [record(i, latency, perplexity=value) for i, (latency, value) in enumerate(points)]
    front = front_of(records, DOWN)
    useful = [(x, y, i) for i, (x, y) in enumerate(points) if y <= 40.0]
    best = {i for x, y, i in useful if not any(a <= x and b <= y and (a < x or b < y) for a, b, _ in useful)}
    if useful:
        assert {point.number for point in front.points} == best
        assert front.hypervolume >= 0
        assert front.pick().metrics["perplexity"] == min(y for _, y, _ in useful)
        assert front.pick(min_accuracy=40.0).number == front.points[0].number, "the fastest that is good enough"
    else:
        assert "perplexity 40" in front.reason


def test_hypervolume_of_a_minimised_metric_is_the_area_up_to_its_limit() -> None:
    front = front_of([record(1, 0.5, perplexity=20.0), record(2, 0.25, perplexity=30.0)], DOWN)
    assert front.hypervolume == pytest.approx(0.5 * (40 - 20) + 0.25 * (40 - 30))
    negated = Objectives("gain", reference_ms=2.0, metric_limit=-40.0)
    same = front_of([record(1, 0.5, gain=-20.0), record(2, 0.25, gain=-30.0)], negated)
    assert same.hypervolume == pytest.approx(front.hypervolume), "a negated cost has an area too"


def test_the_knee_is_where_a_minimised_metric_stops_falling() -> None:
    points = [(0.2, 40.0), (0.3, 21.0), (0.6, 20.5), (1.0, 20.0)]
    front = front_of([record(i, x, perplexity=y) for i, (x, y) in enumerate(points)], DOWN)
    assert front.knee().number == 1


def test_excesses_are_positive_beyond_each_limit_in_both_directions() -> None:
    limits = {"latency_budgets": (0.5,), "max_size_mib": 1.0}
    good, bad = (
        replace(record(1, 0.4, perplexity=30.0), size_mib=0.5),
        replace(record(2, 0.4, perplexity=50.0), size_mib=2.0),
    )
    objectives = replace(DOWN, **limits)
    assert max(objectives.excesses(good).values()) <= 0
    assert objectives.excesses(bad) == pytest.approx({"latency": -0.1, "metric": 10.0, "size": 1.0})
    slow = record(3, 0.6, perplexity=50.0)
    assert "metric" not in objectives.excesses(slow), "it was not trained"
    assert replace(UP, **limits).excesses(record(1, 0.4, accuracy=0.4))["metric"] == pytest.approx(0.1)


def test_the_best_rung_is_the_first_of_the_best() -> None:
    rungs = [Rung(0, {"perplexity": 30.0}), Rung(5, {"perplexity": 20.0}), Rung(9, {"perplexity": 20.0})]
    assert DOWN.best_rung(rungs).steps == 5
    assert replace(DOWN, direction="maximize").best_rung(rungs).steps == 0


def test_early_stopping_keeps_the_low_perplexities() -> None:
    rule = ParetoEarlyStopping(DOWN, keep_fraction=0.5)
    for i in range(8):
        rule.should_continue(f"warm-up {i}", 20, 20.0 + i, 0.5)
    assert rule.should_continue("better", 20, 10.0, 0.5)
    assert not rule.should_continue("worse", 20, 39.0, 0.5)


def test_patience_sees_a_falling_perplexity_as_growth() -> None:
    patience = Patience(2, DOWN)
    for i, value in enumerate([30.0, 25.0, 20.0, 15.0]):
        patience.update(record(i, 0.5, perplexity=value))
    assert not patience.over
    for i in range(2):
        patience.update(record(9 + i, 0.5, perplexity=39.0))
    assert patience.over


@pytest.mark.parametrize(
    ("baseline", "direction", "limit"),
    [
        (0.9, "maximize", 0.45),
        (20.0, "minimize", 40.0),
        (-20.0, "maximize", -40.0),
        (-3.0, "minimize", -1.5),
        (0.0, "maximize", None),
    ],
)
def test_the_default_limit_is_half_of_a_gain_or_twice_a_cost(baseline: float, direction: str, limit: float) -> None:
    assert default_limit(baseline, direction) == limit  # type: ignore[arg-type]  # either of both


def test_directions_of_a_task() -> None:
    names = ["accuracy", "perplexity", "val_loss"]
    assert metric_directions(None, names) == {"accuracy": "maximize"}
    assert metric_directions(("accuracy",), names) == {"accuracy": "maximize"}
    given = {"perplexity": "minimize", "accuracy": "maximize"}
    assert list(metric_directions(given, names).items()) == list(given.items()), "the first is optimised"
    with pytest.raises(InputError, match='objectives = {"val_loss": "minimize"}'):
        metric_directions(None, ["val_loss"])
    assert metric_directions({"val_loss": "maximize"}, names) == {"val_loss": "maximize"}
    with pytest.raises(InputError, match="'down'"):
        metric_directions({"accuracy": "down"}, names)
    with pytest.raises(InputError, match="recall"):
        metric_directions(["recall"], names)
    assert metric_directions(None, ["terror_recall"]) == {"terror_recall": "maximize"}, "whole words only"


def test_budgets() -> None:
    assert budget_ratio("0.5x", 8.0) == 0.5
    assert budget_ratio(" 2.0ms", 8.0) == 0.25
    assert budget_ratios("0.25x,4ms", 8.0) == (0.5, 0.25)
    for text in ("0.5", "x", "-1x", "0ms", "nanx", "infms", "1.5s", ""):
        with pytest.raises(InputError, match="positive share like 0.5x"):
            budget_ratio(text, 8.0)


def test_costs_have_both_minimised() -> None:
    records = [record(1, 0.5, perplexity=20.0)]
    np.testing.assert_allclose(DOWN.costs(records), [[0.5, 20.0]])
    np.testing.assert_allclose(UP.costs([record(1, 0.5, accuracy=0.9)]), [[0.5, -0.9]])
    assert ratio(records[0]) == 0.5


@pytest.mark.parametrize("given", [3, "accuracy", True, {"accuracy"}])
def test_objectives_are_a_mapping_or_a_list(given: object) -> None:
    with pytest.raises(InputError, match="must be a mapping"):
        metric_directions(given, ["accuracy"])
