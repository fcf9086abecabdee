"""Pareto fronts of trial records: accuracy up, latency down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import InputError
from autocompress.results.columns import row
from autocompress.results.records import TrialRecord
from autocompress.space.candidate import Candidate

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]


def non_dominated(costs: Floats) -> NDArray[np.bool_]:
    """Marks the points that no other point dominates.

    Args:
        costs: shape (n_points, n_objectives), each objective to be minimised. A row with NaN is never marked.

    Returns:
        Booleans, shape (n_points,). Of equal points all are marked.
    """
    costs = np.asarray(costs, dtype=np.float64)
    valid: NDArray[np.bool_] = np.logical_not(np.isnan(costs).any(axis=1)).reshape(-1)
    marked = valid.copy()
    if costs.shape[1] == 2:
        marked[valid] = _non_dominated_pairs(costs[valid])
        return marked
    for i in np.flatnonzero(valid):
        others = costs[valid]
        marked[i] = not ((others <= costs[i]).all(axis=1) & (others < costs[i]).any(axis=1)).any()
    return marked


def _non_dominated_pairs(costs: Floats) -> NDArray[np.bool_]:
    """As `non_dominated`, of two objectives and without NaN, in O(n log n)."""
    if not len(costs):
        return np.zeros(0, dtype=np.bool_)
    firsts, group = np.unique(costs[:, 0], return_inverse=True)
    lowest = np.full(len(firsts), np.inf)
    np.minimum.at(lowest, group, costs[:, 1])
    is_lower = np.r_[True, lowest[1:] < np.minimum.accumulate(lowest)[:-1]]
    marked: NDArray[np.bool_] = is_lower[group] & (costs[:, 1] == lowest[group])
    return marked


def hypervolume(costs: Floats, reference: Sequence[float]) -> float:
    """Area dominated by the points and bounded by `reference`, for two objectives to be minimised.

    Args:
        costs: shape (n_points, 2). Points that do not dominate `reference`, and rows with NaN, add nothing.
        reference: the worst corner, shape (2,).

    Source: Zitzler & Thiele 1998, "Multiobjective optimization using evolutionary algorithms".
    """
    points = np.asarray(costs, dtype=np.float64).reshape(-1, 2)
    points = points[(points < np.asarray(reference)).all(axis=1)]
    area, ceiling = 0.0, float(reference[1])
    for x, y in points[np.lexsort((points[:, 1], points[:, 0]))]:
        if y < ceiling:
            area += (reference[0] - x) * (ceiling - y)
            ceiling = float(y)
    return area


def added_hypervolume(front: Floats, reference: Sequence[float], x: Floats, y: Floats) -> Floats:
    """Area that single points would add to a front, for two objectives to be minimised.

    Args:
        front: shape (n_front, 2), any order; its own hypervolume is bounded by `reference`.
        reference: the worst corner.
        x: first objectives of the points.
        y: second ones, of a shape that broadcasts with that of `x`, which is the shape of the result.
    """
    order = np.lexsort((front[:, 1], front[:, 0]))
    starts = np.r_[-np.inf, np.minimum(front[order, 0], reference[0])]
    ends = np.r_[starts[1:], reference[0]]
    heights = np.r_[reference[1], np.minimum(np.minimum.accumulate(front[order, 1]), reference[1])]
    widths = np.maximum(0.0, ends - np.maximum(starts, x[..., None]))
    added: Floats = (widths * np.maximum(0.0, heights - y[..., None])).sum(axis=-1)
    return added


@dataclass(frozen=True)
class ParetoFront:
    """The best trials of a search: no other feasible trial is both more accurate and faster.

    Attributes:
        points: records on the front, fastest first. Where files were exported each has `.file`.
        baseline: the uncompressed model's record.
        metric: name of the metric that is maximised.
        budget_ratio: the latency budget as a share of the uncompressed latency; None without a budget.
        reference_ms: latency of the uncompressed model in this run, milliseconds.
        reason: empty; or, when no point is within the budget, why, and `points` are the nearest ones.
    """

    points: tuple[TrialRecord, ...]
    baseline: TrialRecord | None
    metric: str
    budget_ratio: float | None
    reference_ms: float
    reason: str = ""

    @property
    def hypervolume(self) -> float:
        """Area over (latency ratio, metric) against the reference (1.0, 0.0); in [0, 1] for a metric in [0, 1]."""
        costs = np.array([[ratio(point), -score(point, self.metric)] for point in self.points]).reshape(-1, 2)
        return hypervolume(costs, (1.0, 0.0))

    def pick(
        self,
        *,
        latency_budget: str | None = None,
        min_accuracy: float | None = None,
        trial: int | None = None,
        knee: bool = False,
    ) -> TrialRecord:
        """The one point asked for: that trial, the fastest of at least an accuracy, or the most accurate in a budget.

        Args:
            latency_budget: "1.5ms" or "0.5x" of the uncompressed latency.
            min_accuracy: smallest value of the metric.
            trial: number of a trial on the front.
            knee: the point of `knee()`; goes with none of the others.

        Raises:
            InputError: no point fits; names the nearest.
        """
        if knee:
            if (latency_budget, min_accuracy, trial) != (None, None, None):
                raise InputError("knee stands alone: the knee does not depend on a budget, an accuracy or a trial")
            return self.knee()
        if not self.points:
            raise InputError("the front has no points; run or resume the search first")
        points = list(self.points)
        if trial is not None:
            points = [point for point in points if point.number == trial]
            if not points:
                raise InputError(f"trial must be on the front {[p.number for p in self.points]}, but got {trial}")
        if latency_budget is not None:
            limit = budget_ratio(latency_budget, self.reference_ms)
            nearest = min(points, key=ratio)
            points = [point for point in points if ratio(point) <= limit]
            if not points:
                raise InputError(
                    f"no point of the front is within {latency_budget}; the fastest, {nearest.name}, has "
                    f"{ratio(nearest) * self.reference_ms:.3g}ms ({ratio(nearest):.3g}x); search with a lower budget"
                )
        if min_accuracy is not None:
            nearest = max(points, key=lambda point: score(point, self.metric))
            points = [point for point in points if score(point, self.metric) >= min_accuracy]
            if not points:
                raise InputError(
                    f"no such point of the front has {self.metric} >= {min_accuracy}; the best, {nearest.name}, "
                    f"has {score(nearest, self.metric):.4g}"
                )
            return min(points, key=ratio)
        return max(points, key=lambda point: score(point, self.metric))

    def knee(self) -> TrialRecord:
        """The point where giving up more of one objective stops paying: farthest from the line between the ends.

        Both axes are scaled to [0, 1] between the fastest and the best point; of a front of one or two points, the
        fastest.

        Raises:
            InputError: the front has no points.

        Source: Das 1999, "On characterizing the knee of the Pareto curve based on normal-boundary intersection".
        """
        if not self.points:
            raise InputError("the front has no points; run or resume the search first")
        xs = np.array([ratio(point) for point in self.points])
        ys = np.array([score(point, self.metric) for point in self.points])
        across, up = np.ptp(xs) or 1.0, np.ptp(ys) or 1.0
        return self.points[int(np.argmax((ys - ys.min()) / up - (xs - xs.min()) / across))]

    def to_frame(self) -> pd.DataFrame:
        """One row per point, fastest first; `columns.COLUMNS` and `docs/results.md` say what the columns mean."""
        import pandas as pd

        rows = [row(point, self.metric) for point in self.points]
        return pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(row(_NO_POINT, self.metric)))


def ratio(record: TrialRecord) -> float:
    """Latency as a share of the uncompressed model's: of the exported file where there is one, else of the search."""
    latency = record.file.latency if record.file is not None else record.latency
    return float("nan") if latency is None else latency.ratio


def score(record: TrialRecord, metric: str) -> float:
    """The metric on the selection split: of the exported file where there is one, else of the student."""
    metrics = record.file.metrics.get("selection", {}) if record.file is not None else record.metrics
    return metrics.get(metric, float("nan"))


def front_of(
    records: Sequence[TrialRecord],
    metric: str,
    budget: float | None,
    reference_ms: float,
    min_score: float | None = None,
    max_size_mib: float | None = None,
    max_memory_mib: float | None = None,
) -> ParetoFront:
    """Builds the front from all records of a run.

    Args:
        records: any order; failed ones are left out.
        metric: name of the metric to maximise.
        budget: latency ratio that a feasible record must not exceed, or None.
        reference_ms: latency of the uncompressed model, milliseconds.
        min_score: value of the metric that a feasible record must reach, or None.
        max_size_mib: size of the runtime's file that a feasible record must not exceed, or None.
        max_memory_mib: memory that a feasible record's file must not exceed, or None; known of exported files alone.

    Returns:
        The front among feasible records; when none is feasible, the front among the three nearest and the reason.
    """
    complete = [record for record in records if record.is_point]
    baseline = next((record for record in complete if record.candidate.is_baseline), None)
    fast = [record for record in complete if budget is None or ratio(record) <= budget]
    small = [record for record in fast if _excess(record, max_size_mib, max_memory_mib) <= 0]
    feasible = [record for record in small if min_score is None or score(record, metric) >= min_score]
    reason = ""
    if complete and not fast:
        feasible = sorted(complete, key=ratio)[:3]
        reason = (
            f"no trial is within {budget:.3g}x of the uncompressed latency; the fastest of "
            f"{len(complete)} ({feasible[0].name}) has {ratio(feasible[0]):.3g}x; "
            "offer stronger choices in the space, or raise the budget"
        )
    elif fast and not small:
        feasible = sorted(fast, key=lambda record: _excess(record, max_size_mib, max_memory_mib))[:3]
        reason = (
            f"no trial that is fast enough is within {_limits_text(max_size_mib, max_memory_mib)}; "
            f"the nearest ({feasible[0].name}) has {_limits_text(_size(feasible[0]), _memory(feasible[0]))}; "
            "raise the budget, or offer stronger choices in the space"
        )
    elif small and not feasible:
        feasible = sorted(small, key=lambda record: -score(record, metric))[:3]
        reason = (
            f"no trial that is fast enough reaches {metric} {min_score:.4g}; the best ({feasible[0].name}) has "
            f"{score(feasible[0], metric):.4g}; give more trials or fine-tune steps, or lower --min-accuracy"
        )
    costs = np.array([[ratio(record), -score(record, metric)] for record in feasible]).reshape(-1, 2)
    points = [record for record, marked in zip(feasible, non_dominated(costs), strict=True) if marked]
    points.sort(key=lambda record: (ratio(record), -score(record, metric)))
    return ParetoFront(tuple(points), baseline, metric, budget, reference_ms, reason)


def _size(record: TrialRecord) -> float:
    return record.size_mib if record.file is None else record.file.size_mib


def _memory(record: TrialRecord) -> float | None:
    return None if record.file is None else record.file.memory_mib


def _limits_text(size_mib: float | None, memory_mib: float | None) -> str:
    """`a file of 0.2 MiB and memory of 30 MiB`, without what is not known."""
    known = (("a file", size_mib), ("memory", memory_mib))
    return " and ".join(f"{name} of {mib:.3g} MiB" for name, mib in known if mib is not None)


def _excess(record: TrialRecord, max_size_mib: float | None, max_memory_mib: float | None) -> float:
    """How many MiB a record is beyond the limits, the larger of both; what is not known is not beyond."""
    over = [
        value - limit
        for value, limit in ((_size(record), max_size_mib), (_memory(record), max_memory_mib))
        if value is not None and limit is not None
    ]
    return max(over, default=0.0)


def budget_ratios(text: str, reference_ms: float) -> tuple[float, ...]:
    """Budgets with commas between them, "0.5x,0.35x", as shares of the uncompressed latency; the largest first.

    Raises:
        InputError: one of them is no budget.
    """
    return tuple(sorted({budget_ratio(part, reference_ms) for part in text.split(",")}, reverse=True))


def budget_ratio(text: str, reference_ms: float) -> float:
    """A budget as a share of the uncompressed latency.

    Args:
        text: "0.5x" (share) or "2.0ms" (milliseconds).
        reference_ms: latency of the uncompressed model, milliseconds.

    Raises:
        InputError: another form, or not positive.
    """
    form = "a latency budget is a positive share like 0.5x or milliseconds like 2.0ms"
    number, unit = text.strip()[:-1], text.strip()[-1:]
    if text.strip().endswith("ms"):
        number, unit = text.strip()[:-2], "ms"
    try:
        value = float(number)
    except ValueError:
        raise InputError(f"{form}, but got {text!r}") from None
    if unit not in ("x", "ms") or not np.isfinite(value) or value <= 0:
        raise InputError(f"{form}, but got {text!r}")
    return value if unit == "x" else value / reference_ms


_NO_POINT = TrialRecord(0, "complete", "baseline", Candidate())
