"""Fronts and hypervolume against brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.errors import InputError
from autocompress.results.columns import COLUMNS
from autocompress.results.objectives import budget_ratio
from autocompress.results.pareto import added_hypervolume, front_of, hypervolume, non_dominated
from autocompress.results.records import FileNumbers, Latency, TrialRecord
from autocompress.space.candidate import Candidate
from tests.shared.objectives import of_accuracy

grid_points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12)


@settings(max_examples=60)
@given(grid_points)
def test_non_dominated_is_the_definition(points: list[tuple[int, int]]) -> None:
    costs = np.array(points, dtype=float).reshape(-1, 2)
    expected = [not any((q[0] <= p[0] and q[1] <= p[1]) and q != p for q in points) for p in points]
    assert non_dominated(costs).tolist() == expected


@settings(max_examples=60)
@given(grid_points)
def test_hypervolume_counts_unit_cells(points: list[tuple[int, int]]) -> None:
    cells = sum(any(px <= x and py <= y for px, py in points) for x in range(8) for y in range(8))
    assert hypervolume(np.array(points, dtype=float).reshape(-1, 2), (8.0, 8.0)) == cells


@settings(max_examples=60)
@given(grid_points, st.tuples(st.integers(-1, 9), st.integers(-1, 9)))
def test_added_hypervolume_is_the_difference(points: list[tuple[int, int]], new: tuple[int, int]) -> None:
    front = np.array(points, dtype=float).reshape(-1, 2)
    expected = hypervolume(np.vstack([front, [new]]), (8.0, 8.0)) - hypervolume(front, (8.0, 8.0))
    found = added_hypervolume(front, (8.0, 8.0), np.array([float(new[0])]), np.array([[float(new[1])], [8.0]]))
    assert found.tolist() == [[expected], [0.0]], "and beyond the corner nothing is added"


def test_nan_rows_are_never_on_the_front() -> None:
    assert non_dominated(np.array([[np.nan, 0.0], [1.0, 1.0]])).tolist() == [False, True]


def _record(number: int, ratio: float, accuracy: float) -> TrialRecord:
    candidate = Candidate(weight_bits={"conv": 8, f"fc{number}": 8}) if number else Candidate()
    latency = Latency(ratio, 0.0, ratio * 2.0, 5)
    return TrialRecord(number, "complete", "sampler", candidate, {"accuracy": accuracy}, latency, feasible=ratio <= 0.5)


def test_front_keeps_feasible_points_fastest_first_and_picks() -> None:
    records = [_record(0, 1.0, 0.95), _record(1, 0.5, 0.9), _record(2, 0.3, 0.8), _record(3, 0.4, 0.7)]
    front = front_of(records, of_accuracy(0.5, 2.0))
    assert [point.number for point in front.points] == [2, 1]
    assert front.baseline is records[0]
    assert front.pick(latency_budget="0.8ms").number == 2
    assert front.pick(min_accuracy=0.75).number == 2
    assert front.pick().number == 1
    assert front.hypervolume == pytest.approx(0.5 * 0.9 + 0.2 * 0.8)
    with pytest.raises(InputError, match="trial_0002"):
        front.pick(latency_budget="0.1x")
    ended = [replace(records[1], state="stopped"), replace(records[2], state="failed")]
    assert front_of(ended, of_accuracy(0.5, 2.0)).points == (ended[0],), "trained less, but a point all the same"
    with pytest.raises(InputError, match=r"\[2, 1\], but got 3"):
        front.pick(trial=3)


@given(st.lists(st.tuples(st.floats(0.05, 1.0), st.floats(0.1, 1.0)), min_size=3, max_size=12))
def test_the_knee_is_farthest_from_the_line_between_the_ends(points: list[tuple[float, float]]) -> None:
    front = front_of([_record(i, ratio, score) for i, (ratio, score) in enumerate(points)], of_accuracy(None, 1.0))
    if len({point.latency.ratio for point in front.points if point.latency}) < 3:
        return
    ratios = np.array([point.latency.ratio for point in front.points if point.latency])
    scores = np.array([point.metrics["accuracy"] for point in front.points])
    x, y = (ratios - ratios[0]) / (ratios[-1] - ratios[0]), (scores - scores[0]) / (scores[-1] - scores[0])
    line = np.array([1.0, 1.0]) / np.sqrt(2)
    distances = [line[0] * b - line[1] * a for a, b in zip(x, y, strict=True)]
    knee = next(i for i, point in enumerate(front.points) if point is front.knee())
    assert distances[knee] == pytest.approx(max(distances))


def test_the_knee_stands_alone() -> None:
    front = front_of([_record(0, 1.0, 0.95), _record(1, 0.5, 0.94), _record(2, 0.4, 0.5)], of_accuracy(None, 2.0))
    assert front.pick(knee=True).number == 1
    with pytest.raises(InputError, match="knee stands alone"):
        front.pick(knee=True, trial=1)
    with pytest.raises(InputError, match="has no points"):
        front_of([], of_accuracy(None, 2.0)).pick(knee=True)


def test_the_table_has_the_same_columns_with_and_without_points() -> None:
    front = front_of([_record(0, 1.0, 0.95)], of_accuracy(None, 2.0))
    empty = front_of([], of_accuracy(None, 2.0))
    assert list(front.to_frame().columns) == list(empty.to_frame().columns)
    names = {column.name.format(metric="accuracy", split="test") for column in COLUMNS}
    assert names <= set(empty.to_frame().columns), "every documented column is there"


def test_of_one_candidate_the_longest_trained_is_on_the_front_since_it_kept_the_better_weights() -> None:
    first = _record(1, 0.5, 0.9)
    polished = replace(first, number=5, origin="polished", metrics={"accuracy": 0.93})
    worse = replace(first, number=6, origin="polished", metrics={"accuracy": 0.85})
    equal = replace(first, number=7, origin="refined")
    for records, best in (([first, polished, worse], 5), ([first, worse], 6), ([first, equal], 7)):
        assert [point.number for point in front_of(records, of_accuracy(0.5)).points] == [best]


def test_no_feasible_point_gives_the_nearest_and_the_reason() -> None:
    front = front_of([_record(0, 1.0, 0.95), _record(1, 0.6, 0.9)], of_accuracy(0.5, 2.0))
    assert front.points[0].number == 1
    assert "0.6x" in front.reason


def test_points_below_the_smallest_useful_metric_are_not_on_the_front() -> None:
    records = [_record(0, 1.0, 0.95), _record(1, 0.5, 0.9), _record(2, 0.3, 0.2)]
    assert [point.number for point in front_of(records, of_accuracy(0.5, 2.0, metric_limit=0.5)).points] == [1]
    front = front_of(records, of_accuracy(0.4, 2.0, metric_limit=0.5))
    assert [point.number for point in front.points] == [2]
    assert "reaches accuracy 0.5; the best (trial_0002) has 0.2" in front.reason


def _with_file(record: TrialRecord, size_mib: float, memory_mib: float) -> TrialRecord:
    assert record.latency is not None
    numbers = FileNumbers({"selection": record.metrics}, {}, record.latency, size_mib, 0.0, 1.0, memory_mib=memory_mib)
    return record.with_file(numbers)


def test_files_that_are_too_large_or_take_too_much_memory_are_not_on_the_front() -> None:
    records = [
        _with_file(_record(0, 1.0, 0.95), 1.0, 40.0),
        _with_file(_record(1, 0.6, 0.9), 0.6, 30.0),
        _with_file(_record(2, 0.4, 0.8), 0.4, 20.0),
    ]

    def on_front(size: float | None, memory: float | None) -> list[int]:
        return [
            p.number for p in front_of(records, of_accuracy(None, 2.0, max_size_mib=size, max_memory_mib=memory)).points
        ]

    assert on_front(None, None) == [2, 1, 0]
    assert on_front(0.6, None) == [2, 1]
    assert on_front(0.6, 25.0) == [2]
    front = front_of(records, of_accuracy(None, 2.0, max_memory_mib=10.0))
    assert "no trial that is fast enough is within memory of 10 MiB" in front.reason
    assert "the nearest (trial_0002) has a file of 0.4 MiB and memory of 20 MiB" in front.reason
    unknown = front_of([_record(1, 0.6, 0.9)], of_accuracy(None, 2.0, max_memory_mib=10.0))
    assert not unknown.reason, "of what has no file yet nothing is known"


@pytest.mark.parametrize("text", ["", "x", "2", "-1x", "0ms", "nanx", "2s", "ms"])
def test_budget_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="latency budget"):
        budget_ratio(text, 2.0)


def test_budget_in_both_forms() -> None:
    assert budget_ratio("0.5x", 2.0) == 0.5
    assert budget_ratio(" 1.0ms", 2.0) == 0.5
