"""Which front points are polished: from slow to fast, spread, each once, in the time that is left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.execution.polish import Polish, PolishPlanner, PolishSettings, spread, step_seconds
from autocompress.execution.run_clock import RunClock
from autocompress.results.records import Latency, Rung, TrialRecord
from autocompress.sampling.study import POLISHED
from autocompress.space.candidate import Candidate
from tests.shared.objectives import of_accuracy


def record(number: int, ratio: float, accuracy: float, seconds: float = 10.0, steps: int = 100) -> TrialRecord:
    """A trial that was trained; number 0 is the uncompressed model, which was not."""
    rungs = (Rung(0, {"accuracy": 0.1}), Rung(steps, {"accuracy": accuracy})) if number else ()
    return TrialRecord(
        number,
        "complete",
        "sampler",
        Candidate({f"conv{number}": 0.5}) if number else Candidate(),
        {"accuracy": accuracy},
        Latency(ratio, 0.0, ratio, 9),
        rungs=rungs,
        seconds={"fine-tune": seconds} if number and steps else {},
        n_macs=1000,
    )


FRONT = [record(0, 1.0, 0.95), record(1, 0.2, 0.7), record(2, 0.8, 0.9), record(3, 0.4, 0.8), record(4, 0.5, 0.75)]
"""Trials 2, 3 and 1 are the front, with the uncompressed model, from slow to fast; 4 is dominated."""


def planner(n_points: int = 8, steps: int | None = 300, clock: RunClock | None = None) -> PolishPlanner:
    return PolishPlanner(of_accuracy(), PolishSettings(n_points, steps, 1), clock or RunClock(None, 0.4))


def polished(found: Polish, number: int, accuracy: float) -> TrialRecord:
    return replace(found.origin, number=number, origin=POLISHED, metrics={"accuracy": accuracy})


@pytest.mark.parametrize("accuracy", [0.3, 0.93])
def test_points_are_polished_from_slow_to_fast_and_each_once_whatever_it_gave(accuracy: float) -> None:
    records, order = list(FRONT), []
    while (found := planner().next(records, [])) is not None:
        assert found.steps == 300
        order.append(found.origin.number)
        records.append(polished(found, 10 + len(order), accuracy))
    assert order == [2, 3, 1]


def test_points_that_are_being_polished_are_passed_over() -> None:
    running = [record(2, 0.8, 0.9), record(3, 0.4, 0.8)]
    found = planner().next(FRONT, running)
    assert found is not None and found.origin.number == 1
    assert planner().next(FRONT, [*running, record(1, 0.2, 0.7)]) is None


def test_what_has_nothing_to_gain_is_not_polished() -> None:
    better = record(5, 0.3, 0.96)
    assert planner().next([record(0, 1.0, 0.95), better], []) is None, "above the uncompressed model"
    assert planner().next([record(0, 1.0, 0.95)], []) is None
    assert planner().next([], []) is None
    assert planner(n_points=0).next(FRONT, []) is None


@pytest.mark.parametrize("asked", [0.475, 0.92])  # the worst useful accuracy: the default, and a user's
def test_what_training_may_lift_to_a_useful_value_is_polished(asked: float) -> None:
    objectives = replace(of_accuracy(), metric_limit=asked)
    records = [*FRONT, record(5, 0.1, 0.45), record(6, 0.05, 0.2)]
    order = []
    polish = PolishPlanner(objectives, PolishSettings(8, 300, 1), RunClock(None, 0.4))
    while (found := polish.next(records, [])) is not None:
        order.append(found.origin.number)
        records.append(polished(found, 10 + len(order), 0.93))
    assert order == [2, 3, 1, 5], "of 0.2 nothing is expected: a quarter of the uncompressed model's is more"


def test_what_was_judged_on_a_part_is_compared_with_the_uncompressed_model_on_that_part() -> None:
    """On the part the uncompressed model has 0.97, so 0.96 can gain although it has 0.95 on the whole."""
    records = [record(0, 1.0, 0.95), record(5, 0.3, 0.96), record(6, 0.2, 0.98)]
    settings = PolishSettings(8, 300, 1, top=0.97)
    found = PolishPlanner(of_accuracy(), settings, RunClock(None, 0.4)).next(records[:2], [])
    assert found is not None and found.origin.number == 5
    assert PolishPlanner(of_accuracy(), settings, RunClock(None, 0.4)).next([records[0], records[2]], []) is None


def test_where_time_is_short_fewer_points_are_polished_and_they_are_spread() -> None:
    """Steps take 0.1 s: 145 s are enough for two of the eight, 290 s for four; the nearest to the top comes last."""
    rest = [record(0, 1.0, 0.95), *(record(i, 0.9 - 0.1 * i, 0.9 - 0.05 * i) for i in range(1, 9))]
    for seconds, n in ((145.0, 2), (290.0, 4)):
        now = Now()
        clock, records, order = RunClock(10.0, 0.5, now), list(rest), []
        now.seconds = 540.0 - seconds
        while (found := planner(steps=None, clock=clock).next(records, [])) is not None:
            order.append(found.origin.number)
            now.seconds += found.steps * 0.1 + 1.0
            records.append(polished(found, 10 + len(records), 0.93))
        assert (order[0], order[n - 1]) == (2, 8) and len(order) <= n + 1, (seconds, order)


def test_where_time_is_enough_for_one_it_is_the_middle_one() -> None:
    now = Now()
    clock = RunClock(10.0, 0.5, now)
    now.seconds = 500.0
    records = [record(0, 1.0, 0.95), record(1, 0.8, 0.8), record(2, 0.4, 0.75), record(3, 0.2, 0.7)]
    found = planner(steps=None, clock=clock).next(records, [])
    assert found is not None and found.origin.number == 2 and found.seconds == pytest.approx(40.0)


def test_where_time_is_short_points_near_the_uncompressed_model_are_left() -> None:
    now = Now()
    clock = RunClock(10.0, 0.5, now)
    now.seconds = 500.0  # 40 s are left: 400 steps of 0.1 s
    near, far = record(1, 0.9, 0.949), record(2, 0.3, 0.8)
    found = planner(steps=None, clock=clock).next([record(0, 1.0, 0.95), near, far], [])
    assert found is not None and found.origin is far and 200 < found.steps <= 400
    now.seconds = 0.0
    found = planner(steps=None, clock=clock).next([record(0, 1.0, 0.95), near, far], [])
    assert found is not None and found.origin is near


def test_a_front_beyond_the_budget_is_not_polished() -> None:
    found = PolishPlanner(of_accuracy(0.1), PolishSettings(8, 300, 1), RunClock(None, 0.4)).next(FRONT, [])
    assert found is None


def test_of_a_minimised_metric_the_smaller_one_is_better() -> None:
    from autocompress.results.objectives import Objectives

    records = [
        replace(item, metrics={"loss": 1 - item.metrics["accuracy"]}, rungs=())
        for item in [*FRONT, record(5, 0.1, 0.99)]
    ]
    objectives = Objectives("loss", direction="minimize", reference_ms=1.0)
    found = PolishPlanner(objectives, PolishSettings(8, 300, 1), RunClock(None, 0.4)).next(records, [])
    assert found is None, "5 has a smaller loss than the uncompressed model, and dominates the slow ones; "
    found = PolishPlanner(objectives, PolishSettings(8, 300, 1), RunClock(None, 0.4)).next(records[:-1], [])
    assert found is not None and found.origin.number == 2


# --- the time that is left


class Now:
    """Seconds that the test sets."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_the_points_share_the_time_that_is_left() -> None:
    now = Now()
    clock = RunClock(10.0, 0.5, now)
    now.seconds = 240.0
    records, spent = list(FRONT), 0.0
    while (found := planner(steps=None, clock=clock).next(records, [])) is not None:
        seconds = found.steps * 0.1  # 100 steps took 10 s
        assert seconds >= 0.5 * 300 / 3, "an equal share, less what is kept back"
        now.seconds += seconds
        spent += seconds
        records.append(polished(found, 10 + len(records), 0.93))
    assert len(records) == len(FRONT) + 3
    assert 0.6 * 300 < spent <= 300, "most of the time is used, and not more"


def test_a_costly_point_gets_more_time_and_fewer_steps_than_a_cheap_one() -> None:
    cheap, costly = record(1, 0.2, 0.7, seconds=4.0), record(2, 0.8, 0.9, seconds=16.0)
    now = Now()
    records = [record(0, 1.0, 0.95), cheap, costly]
    polish = planner(steps=None, clock=RunClock(10.0, 0.5, now))
    first = polish.next(records, [])
    assert first is not None and first.origin is costly and first.seconds == pytest.approx(540 * 2 / 3)
    now.seconds = first.seconds
    second = polish.next([*records, polished(first, 9, 0.93)], [])
    assert second is not None and second.origin is cheap and second.seconds == pytest.approx(540 / 3)
    assert second.steps > 1.9 * first.steps


def test_what_running_polishes_were_given_is_not_given_again() -> None:
    """Two workers, four points; a worker that is free takes the next, and all end at the same time."""
    now = Now()
    clock = RunClock(20.0, 0.5, now)
    points = [record(i, 0.8 / i, 0.9 - 0.05 * i, seconds=20.0 / i) for i in (1, 2, 3, 4)]
    records = [record(0, 1.0, 0.95), *points]
    polish = PolishPlanner(of_accuracy(), PolishSettings(8, None, 2), clock)
    running: list[tuple[float, Polish]] = []
    order, busy = [], 0.0
    while True:
        found = polish.next(records, [item.origin for _, item in running]) if len(running) < 2 else None
        if found is not None:
            assert found.seconds is not None
            order.append(found.origin.number)
            busy += found.seconds
            running.append((now.seconds + found.seconds, found))
            continue
        if not running:
            break
        running.sort(key=lambda item: item[0])
        now.seconds, ended = running.pop(0)
        records.append(polished(ended, 10 + len(records), 0.93))
    assert order == [1, 2, 3, 4]
    assert 0.85 * 2 * 1080 < busy <= 2 * 1080 + 1e-6 and now.seconds <= 1080 + 1e-6


def test_too_little_time_for_one_more_polishes_none() -> None:
    now = Now()
    clock = RunClock(10.0, 0.5, now)
    now.seconds = 536.0  # four seconds are left: 40 steps, fewer with what is kept back
    assert planner(steps=None, clock=clock).next(FRONT, []) is None
    assert planner(steps=50, clock=clock).next(FRONT, []) is not None, "as many as were asked for"


# --- parts


@given(st.lists(st.floats(0.01, 2.0), min_size=1, max_size=20), st.integers(1, 10))
def test_a_spread_keeps_both_ends_and_the_order(ratios: list[float], n: int) -> None:
    points = [record(i + 1, ratio, 0.5) for i, ratio in enumerate(sorted(ratios, reverse=True))]
    found = spread(points, n)
    numbers = [point.number for point in found]
    assert len(found) == min(n, len(points)) and numbers == sorted(set(numbers))
    assert numbers[0] == 1 and (n == 1 or numbers[-1] == points[-1].number)


def test_a_spread_halves_the_widest_gap() -> None:
    ratios = [1.0, 0.98, 0.96, 0.5, 0.26, 0.25]
    points = [record(i, ratio, 0.5) for i, ratio in enumerate(ratios, 1)]
    assert [point.number for point in spread(points, 3)] == [1, 4, 6], "half way between 1 and 0.25 is 0.5"


def test_seconds_of_a_step_are_the_records_own_or_scaled_by_macs() -> None:
    trained = [record(1, 0.2, 0.7, seconds=10.0), record(2, 0.2, 0.7, seconds=30.0)]
    assert step_seconds(trained[0], trained) == pytest.approx(0.1)
    untrained = replace(record(3, 0.5, 0.5), rungs=(Rung(0, {"accuracy": 0.5}),), seconds={}, n_macs=4000)
    assert step_seconds(untrained, trained) == pytest.approx(4 * np.median([0.1, 0.3]))
    assert step_seconds(untrained, []) == 1.0
