"""Pareto fronts of trial records: accuracy up, latency down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Candidate
from autocompress.errors import InputError
from autocompress.records import Latency, TrialRecord

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
    for i in np.flatnonzero(valid):
        others = costs[valid]
        marked[i] = not ((others <= costs[i]).all(axis=1) & (others < costs[i]).any(axis=1)).any()
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
    ) -> TrialRecord:
        """The one point asked for: that trial, the fastest of at least an accuracy, or the most accurate in a budget.

        Args:
            latency_budget: "1.5ms" or "0.5x" of the uncompressed latency.
            min_accuracy: smallest value of the metric.
            trial: number of a trial on the front.

        Raises:
            InputError: no point fits; names the nearest.
        """
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

    def to_frame(self) -> pd.DataFrame:
        """One row per point, fastest first; columns documented in `docs/results.md`."""
        import pandas as pd

        rows = [_row(point, self.metric) for point in self.points]
        return pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(_row(_NO_POINT, self.metric)))


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
) -> ParetoFront:
    """Builds the front from all records of a run.

    Args:
        records: any order; failed ones are left out.
        metric: name of the metric to maximise.
        budget: latency ratio that a feasible record must not exceed, or None.
        reference_ms: latency of the uncompressed model, milliseconds.
        min_score: value of the metric that a feasible record must reach, or None.

    Returns:
        The front among feasible records; when none is feasible, the front among the three nearest and the reason.
    """
    complete = [record for record in records if record.state == "complete" and record.latency is not None]
    baseline = next((record for record in complete if record.candidate.is_baseline), None)
    fast = [record for record in complete if budget is None or ratio(record) <= budget]
    feasible = [record for record in fast if min_score is None or score(record, metric) >= min_score]
    reason = ""
    if complete and not fast:
        feasible = sorted(complete, key=ratio)[:3]
        reason = (
            f"no trial is within {budget:.3g}x of the uncompressed latency; the fastest of "
            f"{len(complete)} ({feasible[0].name}) has {ratio(feasible[0]):.3g}x; "
            "offer stronger choices in the space, or raise the budget"
        )
    elif fast and not feasible:
        feasible = sorted(fast, key=lambda record: -score(record, metric))[:3]
        reason = (
            f"no trial that is fast enough reaches {metric} {min_score:.4g}; the best ({feasible[0].name}) has "
            f"{score(feasible[0], metric):.4g}; give more trials or fine-tune steps, or lower --min-accuracy"
        )
    costs = np.array([[ratio(record), -score(record, metric)] for record in feasible]).reshape(-1, 2)
    points = [record for record, marked in zip(feasible, non_dominated(costs), strict=True) if marked]
    points.sort(key=lambda record: (ratio(record), -score(record, metric)))
    return ParetoFront(tuple(points), baseline, metric, budget, reference_ms, reason)


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


_NO_POINT = TrialRecord(0, "complete", "baseline", Candidate(), latency=Latency(1.0, 0.0, 0.0, 0))


def _row(point: TrialRecord, metric: str) -> dict[str, object]:
    latency = point.file.latency if point.file is not None else point.latency
    assert latency is not None
    sparse_size = point.file.sparse_size_mib if point.file is not None else point.sparse_size_mib
    row: dict[str, object] = {
        "trial": point.number,
        "origin": point.origin,
        "latency_ratio": latency.ratio,
        "latency_spread": latency.spread,
        "latency_ms": latency.ms,
        f"{metric}_search": point.metrics.get(metric),
        "latency_ratio_search": None if point.latency is None else point.latency.ratio,
        "size_mib": point.file.size_mib if point.file is not None else point.size_mib,
        "sparse_size_mib": float("nan") if sparse_size is None else sparse_size,
        "n_params": point.n_params,
        "n_macs": point.n_macs,
        "feasible": point.feasible,
    }
    if point.file is not None:
        for split, metrics in point.file.metrics.items():
            row |= {f"{name}_{split}": value for name, value in metrics.items()}
        row |= {"max_abs_diff": point.file.max_abs_diff, "agreement": point.file.agreement}
    return row
