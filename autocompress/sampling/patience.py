"""Ends a search whose hypervolume has stopped growing."""

from __future__ import annotations

import numpy as np

from autocompress.results.objectives import Objectives, ratio
from autocompress.results.pareto import hypervolume
from autocompress.results.records import TrialRecord

_LEAST_GAIN = 1e-3  # of the hypervolume: less is noise of the measurements


class Patience:
    """Counts the trials since the hypervolume last grew by a thousandth of itself.

    Args:
        n_trials: trials without growth after which the search ends.
        objectives: of the search.
    """

    def __init__(self, n_trials: int, objectives: Objectives) -> None:
        self._n_trials, self._objectives = n_trials, objectives
        self._corner = (objectives.budget or 1.0, -(objectives.gain_limit or 0.0))
        self._points: list[tuple[float, float]] = []
        self._area, self._n_since = 0.0, 0

    @property
    def over(self) -> bool:
        """Whether it is time to end."""
        return self._n_since >= self._n_trials

    def update(self, record: TrialRecord) -> None:
        """Counts one finished trial."""
        self._n_since += 1
        if not record.is_point or not record.feasible:
            return
        self._points.append((ratio(record), -self._objectives.gain_of(record)))
        area = hypervolume(np.array(self._points), self._corner)
        if area > self._area * (1 + _LEAST_GAIN):
            self._area, self._n_since = area, 0
