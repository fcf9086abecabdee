"""Early stopping of trials by Pareto rank (MO-ASHA), and of a search whose hypervolume has stopped growing."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from autocompress.results.objectives import Floats, Objectives, ratio, score
from autocompress.results.pareto import hypervolume
from autocompress.results.records import TrialRecord

KEEP_FRACTION = 0.45
"""Share of the trials at a rung that train to the next one."""

_MIN_PAIRS = 5
_N_WARMUP_TRIALS = 5
"""The first trials go to their end: there is nothing to rank them among, and they show what training gains."""
_LATEST = 1024  # trials at a rung that another is compared with, so that a decision costs the same in a long search


class ParetoEarlyStopping:
    """Successive halving with several objectives (MO-ASHA, Schmucker et al. 2021, arXiv:2106.12639), asynchronous.

    At each rung after some training a trial continues if it is among the best of the trials that were judged there so
    far, of the latest 1,024 in a long search. Their order: those within the budget first, then front after front
    (non-dominated sorting), and within a front those that add more hypervolume. The latency is that of the finished
    model, measured before the first rung. A stopped trial keeps its best checkpoint and may join the front.

    Args:
        objectives: of the search.
        keep_fraction: share of the trials at a rung that continue.
    """

    def __init__(self, objectives: Objectives, keep_fraction: float = KEEP_FRACTION) -> None:
        self._objectives, self._keep_fraction = objectives, keep_fraction
        self._costs: dict[int, deque[tuple[float, float]]] = defaultdict(lambda: deque(maxlen=_LATEST))
        self._warmup_trials: set[str] = set()

    def learn(self, records: Iterable[TrialRecord]) -> None:
        """Takes in the rungs of trials that ended in an earlier start of the run."""
        for record in records:
            if len(record.rungs) > 1 and len(self._warmup_trials) < _N_WARMUP_TRIALS:
                self._warmup_trials.add(record.name)
            for rung in record.rungs:
                gain = self._objectives.gain(rung.metrics.get(self._objectives.metric, math.nan))
                self._costs[rung.steps].append((ratio(record), -gain))

    def should_continue(self, trial: str, steps: int, score: float, ratio: float) -> bool:
        """Whether a trial is worth the next rung.

        Args:
            trial: its name, which stays the same when it restarts on another worker.
            steps: of fine-tuning after which it was judged, which name the rung.
            score: the metric there; a trial with NaN is stopped. Before any training nothing else is.
            ratio: its latency ratio.
        """
        costs = self._costs[steps]
        costs.append((ratio, -self._objectives.gain(score)))
        if len(self._warmup_trials) < _N_WARMUP_TRIALS:
            self._warmup_trials.add(trial)
        if steps == 0 or math.isnan(score):
            return not math.isnan(score)
        place = pareto_order(np.array(costs), self._objectives.budget)[-1]
        is_high = place < max(1, math.ceil(len(costs) * self._keep_fraction))
        return is_high or trial in self._warmup_trials


def pareto_order(costs: Floats, budget: float | None) -> NDArray[np.intp]:
    """The place of each point, 0 the best, shape (n,).

    Args:
        costs: (latency ratio, minus the metric), both minimised, shape (n, 2). Points with NaN come last.
        budget: points beyond it come after all others, by how far.
    """
    excess = np.zeros(len(costs)) if budget is None else np.maximum(0.0, costs[:, 0] - budget)
    fronts = front_numbers(costs)
    gain = np.zeros(len(costs))
    for front in np.unique(fronts[fronts < len(costs)]):
        members = np.flatnonzero(fronts == front)
        gain[members] = _contributions(costs[members])
    order = np.lexsort((-gain, fronts, excess))
    places = np.empty(len(costs), dtype=np.intp)
    places[order] = np.arange(len(costs))
    return places


def front_numbers(costs: Floats) -> NDArray[np.intp]:
    """Non-dominated sorting of two objectives in O(n log n): 0 for the front, 1 for that of the rest, and so on.

    Args:
        costs: to be minimised, shape (n, 2). Points with NaN get the number n.
    """
    numbers = np.full(len(costs), len(costs), dtype=np.intp)
    lowest: list[float] = []  # of the second objective in each front; rises from front to front
    before = -1
    for i in np.lexsort((costs[:, 1], costs[:, 0])):
        if np.isnan(costs[i]).any():
            continue
        if before >= 0 and (costs[i] == costs[before]).all():
            numbers[i] = numbers[before]
        else:
            numbers[i] = bisect.bisect_right(lowest, costs[i, 1])
            lowest[numbers[i] : numbers[i] + 1] = [float(costs[i, 1])]
        before = int(i)
    return numbers


def _contributions(front: Floats) -> Floats:
    """Hypervolume that each point of a front alone adds, in units of the front's extent; the two ends come first."""
    spread = np.maximum(np.ptp(front, axis=0), 1e-12)
    scaled = (front - front.min(axis=0)) / spread
    order = np.lexsort((scaled[:, 1], scaled[:, 0]))
    x, y = scaled[order].T
    gains = np.empty(len(front))
    gains[order] = (np.append(x[1:], 2.0) - x) * (np.append(2.0, y[:-1]) - y)
    return gains


def expected_score(record: TrialRecord, others: Iterable[TrialRecord], objectives: Objectives) -> float:
    """Expected final metric of a stopped trial: a line through the trials that continued from its last rung.

    The line's slope is kept in [0, 1] (what is worse has more to gain), and its value between what was reached and the
    best that a trial reached: a line may point at scores that no model can have.
    With fewer than five trials to go by, it is what was reached.
    """
    metric = objectives.metric
    reached = score(record, metric)
    if record.state != "stopped" or not record.rungs:
        return reached
    last = len(record.rungs) - 1
    pairs = [
        (other.rungs[last].metrics[metric], score(other, metric))
        for other in others
        if other.state == "complete" and len(other.rungs) > last + 1
    ]
    if len(pairs) < _MIN_PAIRS:
        return reached
    expected = final_score(record.rungs[last].metrics[metric], pairs)
    best = max((reached, *(final for _, final in pairs)), key=objectives.gain)
    return max(reached, min(expected, best, key=objectives.gain), key=objectives.gain)


def final_score(at: float, pairs: Sequence[tuple[float, float]]) -> float:
    """On the line through (metric at a rung, metric at the end) of finished trials, its slope kept in [0, 1]."""
    early, final = np.array(pairs).T
    variance = float(np.var(early))
    slope = float(np.clip(np.cov(early, final, bias=True)[0, 1] / variance, 0.0, 1.0)) if variance > 0 else 1.0
    return float(final.mean() + slope * (at - early.mean()))


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
