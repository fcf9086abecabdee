"""The front's hypervolume over the time of the search."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from autocompress.report.wording import is_number
from autocompress.results.objectives import Objectives
from autocompress.results.pareto import hypervolume
from autocompress.results.records import TrialRecord


def hypervolume_history(records: Iterable[TrialRecord], objectives: Objectives) -> list[tuple[int, float, float]]:
    """(trials ended, seconds since the start, hypervolume) after each trial that ended.

    From the search's own numbers: the exported files' exist for the last front only, and one curve needs one clock.
    The reference point is that of `ParetoFront.hypervolume`.
    """
    front = np.empty((0, 2))
    area, history = 0.0, []
    for n_ended, record in enumerate(sorted(records, key=lambda record: record.ended), start=1):
        cost = _search_cost(record, objectives)
        if cost is not None and not (front <= cost).all(axis=1).any():
            front = np.vstack([front[~(front >= cost).all(axis=1)], cost])
            area = hypervolume(front, objectives.reference_point)
        history.append((n_ended, record.ended, area))
    return history


def _search_cost(record: TrialRecord, objectives: Objectives) -> tuple[float, float] | None:
    """(latency ratio, minus the gain) of a point within the budget."""
    value = record.metrics.get(objectives.metric)
    if record.latency is None or not record.is_point or value is None or not is_number(value):
        return None
    latency = record.latency.ratio
    within = objectives.budget is None or latency <= objectives.budget
    return (latency, -objectives.gain(value)) if within else None
