"""Pareto fronts of trial records: a better metric against a lower latency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import InputError
from autocompress.results.columns import row
from autocompress.results.objectives import Floats, Objectives, budget_ratio, memory_of, ratio, size_of
from autocompress.results.records import TrialRecord
from autocompress.space.candidate import Candidate

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
        objectives: what the run optimises, and its limits.
        reason: empty; or, when no point is within the budget, why, and `points` are the nearest ones.
    """

    points: tuple[TrialRecord, ...]
    baseline: TrialRecord | None
    objectives: Objectives
    reason: str = ""

    @property
    def metric(self) -> str:
        """Name of the metric that is optimised."""
        return self.objectives.metric

    @property
    def budget_ratio(self) -> float | None:
        """The latency budget as a share of the uncompressed latency; None without a budget."""
        return self.objectives.budget

    @property
    def reference_ms(self) -> float:
        """Latency of the uncompressed model in this run, milliseconds."""
        return self.objectives.reference_ms

    @property
    def hypervolume(self) -> float:
        """Area over (latency ratio, metric) against `Objectives.reference_point`; in [0, 1] for a metric in [0, 1]."""
        return hypervolume(self.objectives.costs(self.points), self.objectives.reference_point)

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
            min_accuracy: worst acceptable value of the metric: the smallest, or the largest of a minimised one.
            trial: number of a trial on the front.
            knee: the point of `knee()`; goes with none of the others.

        Raises:
            InputError: no point fits; names the nearest.
        """
        if min_accuracy is not None and not math.isfinite(min_accuracy):
            raise InputError(f"min_accuracy must be a finite number, but got {min_accuracy}")
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
            gain_of, least = self.objectives.gain_of, self.objectives.gain(min_accuracy)
            nearest = max(points, key=gain_of)
            points = [point for point in points if gain_of(point) >= least]
            if not points:
                sign = ">=" if self.objectives.is_maximized else "<="
                raise InputError(
                    f"no such point of the front has {self.metric} {sign} {min_accuracy}; the best, {nearest.name}, "
                    f"has {self.objectives.score_of(nearest):.4g}"
                )
            return min(points, key=ratio)
        return max(points, key=self.objectives.gain_of)

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
        ys = np.array([self.objectives.gain_of(point) for point in self.points])
        across, up = np.ptp(xs) or 1.0, np.ptp(ys) or 1.0
        return self.points[int(np.argmax((ys - ys.min()) / up - (xs - xs.min()) / across))]

    def to_frame(self) -> pd.DataFrame:
        """One row per point, fastest first; `columns.COLUMNS` and `docs/results.md` say what the columns mean."""
        import pandas as pd

        rows = [row(point, self.metric) for point in self.points]
        return pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(row(_NO_POINT, self.metric)))

    def plot(self, ax: Axes | None = None) -> Figure:
        """Draws the front, the uncompressed model and the budget: the metric against the share of the latency.

        Args:
            ax: axes of your own to draw into; by default a new figure is made.

        Returns:
            The figure; `.savefig("front.pdf")` writes it.

        Raises:
            MissingExtraError: matplotlib is not installed.
            InputError: no point has both a latency and a metric.
        """
        from autocompress.report.notebook import plot_front

        return plot_front(self, ax)

    def _repr_html_(self) -> str:
        """What notebooks show: the picture and the table."""
        from autocompress.report.notebook import front_html

        return front_html(self)


def front_of(records: Sequence[TrialRecord], objectives: Objectives) -> ParetoFront:
    """Builds the front from all records of a run.

    Args:
        records: any order; failed ones are left out.
        objectives: of the run.

    Returns:
        The front among feasible records; when none is feasible, the front among the three nearest and the reason.
    """
    complete = [record for record in records if record.is_point]
    baseline = next((record for record in complete if record.candidate.is_baseline), None)
    fast = [record for record in complete if objectives.budget is None or ratio(record) <= objectives.budget]
    small = [record for record in fast if objectives.bytes_excess(record) <= 0]
    feasible = [record for record in small if objectives.is_useful(record)]
    reason = ""
    if complete and not fast:
        feasible = sorted(complete, key=ratio)[:3]
        reason = (
            f"no trial is within {objectives.budget:.3g}x of the uncompressed latency; the fastest of "
            f"{len(complete)} ({feasible[0].name}) has {ratio(feasible[0]):.3g}x; "
            "offer stronger choices in the space, or raise the budget"
        )
    elif fast and not small:
        feasible = sorted(fast, key=objectives.bytes_excess)[:3]
        limits = _limits_text(objectives.max_size_mib, objectives.max_memory_mib)
        reason = (
            f"no trial that is fast enough is within {limits}; "
            f"the nearest ({feasible[0].name}) has {_limits_text(size_of(feasible[0]), memory_of(feasible[0]))}; "
            "raise the budget, or offer stronger choices in the space"
        )
    elif small and not feasible:
        feasible = sorted(small, key=lambda record: -objectives.gain_of(record))[:3]
        reason = (
            f"no trial that is fast enough reaches {objectives.metric} {objectives.metric_limit:.4g}; the best "
            f"({feasible[0].name}) has {objectives.score_of(feasible[0]):.4g}; "
            "give more trials or fine-tune steps, or another --min-accuracy"
        )
    feasible = _best_trained(feasible, objectives)
    marks = non_dominated(objectives.costs(feasible))
    points = [record for record, marked in zip(feasible, marks, strict=True) if marked]
    points.sort(key=lambda record: (ratio(record), -objectives.gain_of(record)))
    return ParetoFront(tuple(points), baseline, objectives, reason)


def _best_trained(records: Sequence[TrialRecord], objectives: Objectives) -> list[TrialRecord]:
    """Of records of one candidate, which differ in their training alone, the first of the best.

    One of longer training goes before those that it began with: it has judged their weights anew, on the whole split,
    and kept the better ones.
    """

    def rank(record: TrialRecord) -> tuple[bool, float]:
        return record.is_trained_longer, objectives.gain_of(record)

    best: dict[str, TrialRecord] = {}
    for record in records:
        other = best.get(record.candidate.digest)
        if other is None or rank(record) > rank(other):
            best[record.candidate.digest] = record
    return list(best.values())


def _limits_text(size_mib: float | None, memory_mib: float | None) -> str:
    """`a file of 0.2 MiB and memory of 30 MiB`, without what is not known."""
    known = (("a file", size_mib), ("memory", memory_mib))
    return " and ".join(f"{name} of {mib:.3g} MiB" for name, mib in known if mib is not None)


_NO_POINT = TrialRecord(0, "complete", "baseline", Candidate())
