"""Which front points are trained further, in which order, and for how many steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autocompress.execution.run_clock import RunClock
from autocompress.results.objectives import Objectives, default_limit, ratio
from autocompress.results.pareto import front_of
from autocompress.results.records import TrialRecord
from autocompress.sampling.study import POLISHED

_LEAST_STEPS = 40  # fewer are not worth a trial's start
_LEAST_DEFICIT = 0.25  # where time is short: of the largest deficit; points nearer to the uncompressed model are left
_GOOD_STEPS = 600  # where time is short, fewer points are polished, so that the costliest gets about this many
_SAFETY = 0.85  # share of the time that is planned with: its start and its judging take the rest


@dataclass(frozen=True)
class Polish:
    """One point to train further.

    Attributes:
        origin: the record whose structure is trained.
        steps: of training, as expected.
        seconds: that it may take in all; its steps become fewer or more while it runs, so that it ends in time. None
            leaves the steps as they are.
    """

    origin: TrialRecord
    steps: int
    seconds: float | None = None


@dataclass(frozen=True)
class PolishSettings:
    """How much training the front's points get.

    Attributes:
        n_points: front points that are polished, spread over the front.
        steps: of each point; None divides the time that is left.
        n_workers: that train at the same time.
        top: the uncompressed model's metric as trials are judged, perhaps on a part of the split; None takes its
            record's. What reaches it has nothing to gain.
    """

    n_points: int
    steps: int | None
    n_workers: int
    top: float | None = None


class PolishPlanner:
    """Names the next front point to train further: from the slowest to the fastest, so that weights are passed on.

    The time of all workers is shared by the square root of what a step costs: faster points, which lie farther below
    the uncompressed model, get less time and more steps.

    Args:
        objectives: of the search.
        settings: how much.
        clock: of this start.
    """

    def __init__(self, objectives: Objectives, settings: PolishSettings, clock: RunClock) -> None:
        self._objectives, self._settings, self._clock = objectives, settings, clock
        self._ends: dict[str, float] = {}  # of polishes that were given out, by digest, on the clock

    def next(self, records: Sequence[TrialRecord], running: Sequence[TrialRecord]) -> Polish | None:
        """The next point; None when all have been polished, or the time is too short for one more.

        Args:
            records: of all trials that ended.
            running: polishes that are under way.
        """
        if not self._settings.n_points:
            return None
        polished = [record for record in records if record.origin == POLISHED]
        done = {record.candidate.digest for record in (*polished, *running)}
        wanted = self._points([record for record in records if record.origin != POLISHED])
        left = [record for record in wanted if record.candidate.digest not in done]
        if not left:
            return None
        if self._settings.steps:
            return Polish(left[0], self._settings.steps)
        reached = [point for point in wanted if point.candidate.digest in done]
        chosen = self._that_fit(left, reached, running, records)
        origin, seconds = chosen[0], self._seconds_of(chosen, running, records)
        steps = int(_SAFETY * seconds / max(step_seconds(origin, records), 1e-6))
        if steps < _LEAST_STEPS:
            return None
        self._ends[origin.candidate.digest] = self._clock.now() + seconds
        return Polish(origin, steps, seconds)

    def _points(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        """Front points that training may lift, slowest first; spread over the latencies where there are too many."""
        front = front_of(records, self._reachable(records))
        if front.reason:
            return []
        points = [
            point
            for point in front.points
            if not point.candidate.is_baseline and self._objectives.gain_of(point) < self._top_gain(front.baseline)
        ]
        points.sort(key=ratio, reverse=True)
        return spread(points, self._settings.n_points)

    def _reachable(self, records: Sequence[TrialRecord]) -> Objectives:
        """The objectives with a worst value from which training may lift a point: half of the worst useful one."""
        objectives, top = self._objectives, self._settings.top
        baseline = next((record for record in records if record.candidate.is_baseline), None)
        top = objectives.score_of(baseline) if top is None and baseline is not None else top
        half = None if top is None else default_limit(top, objectives.direction)
        lower = None if half is None else default_limit(half, objectives.direction)
        if objectives.metric_limit is None or lower is None:
            return objectives
        return replace(objectives, metric_limit=min(objectives.metric_limit, lower, key=objectives.gain))

    def _worthwhile(self, points: Sequence[TrialRecord], records: Sequence[TrialRecord]) -> list[TrialRecord]:
        """Those far below the uncompressed model, which training can lift; all where its metric is not known."""
        baseline = next((record for record in records if record.candidate.is_baseline), None)
        top = self._top_gain(baseline)
        deficits = [top - self._objectives.gain_of(point) for point in points]
        least = _LEAST_DEFICIT * max(deficits)
        return [point for point, deficit in zip(points, deficits, strict=True) if deficit >= least]

    def _top_gain(self, baseline: TrialRecord | None) -> float:
        if self._settings.top is not None:
            return self._objectives.gain(self._settings.top)
        return float("inf") if baseline is None else self._objectives.gain_of(baseline)

    def _that_fit(
        self,
        left: Sequence[TrialRecord],
        reached: Sequence[TrialRecord],
        running: Sequence[TrialRecord],
        records: Sequence[TrialRecord],
    ) -> list[TrialRecord]:
        """Those that are still to be polished, slowest first: all, or as many as can get good steps; at least one."""
        if self._steps_of_costliest(left, running, records) >= _GOOD_STEPS:
            return following(left, reached, len(left))
        points = self._worthwhile(left, records)
        for n in range(len(points), 1, -1):
            chosen = following(points, reached, n)
            if self._steps_of_costliest(chosen, running, records) >= _GOOD_STEPS:
                return chosen
        return following(points, reached, max(1, self._settings.n_workers - len(running)))

    def _steps_of_costliest(
        self, points: Sequence[TrialRecord], running: Sequence[TrialRecord], records: Sequence[TrialRecord]
    ) -> float:
        costs = np.array([step_seconds(point, records) for point in points])
        seconds = self._shares(points, records) * self._free_seconds(running)
        return float((_SAFETY * np.minimum(seconds, self._clock.training_left or 0.0) / np.maximum(costs, 1e-9)).min())

    def _seconds_of(
        self, chosen: Sequence[TrialRecord], running: Sequence[TrialRecord], records: Sequence[TrialRecord]
    ) -> float:
        """What the first of the chosen may take: its share, or all that is left where each has a worker of its own."""
        seconds = self._clock.training_left or 0.0
        if len(chosen) <= self._settings.n_workers - len(running):
            return seconds
        return min(seconds, float(self._shares(chosen, records)[0]) * self._free_seconds(running))

    def _shares(self, points: Sequence[TrialRecord], records: Sequence[TrialRecord]) -> NDArray[np.float64]:
        """Of each point in the workers' time."""
        weights = np.sqrt([step_seconds(point, records) for point in points])
        shares: NDArray[np.float64] = weights / max(float(weights.sum()), 1e-9)
        return shares

    def _free_seconds(self, running: Sequence[TrialRecord]) -> float:
        """Of all workers until the polish ends, less what was given to polishes that still run."""
        seconds, now = self._clock.training_left or 0.0, self._clock.now()
        taken = [self._ends.get(record.candidate.digest, now + seconds) - now for record in running]
        return self._settings.n_workers * seconds - sum(min(seconds, max(0.0, item)) for item in taken)


def following(left: Sequence[TrialRecord], reached: Sequence[TrialRecord], n: int) -> list[TrialRecord]:
    """At most `n` points to polish, slowest first, spread from the fastest one reached so far on; at least one.

    A single one is that in the middle, of two the slower.

    Args:
        left: points that may be polished, slowest first; at least one.
        reached: those that were or are being polished.
        n: how many are wanted.
    """
    if not reached:
        return spread(left, n) if n > 1 else [spread(left, 3)[len(left) > 2]]
    last = min(reached, key=ratio)
    faster = [point for point in left if ratio(point) < ratio(last)]
    return spread([last, *faster], n + 1)[1:] if faster else spread(left, n)


def spread(points: Sequence[TrialRecord], n: int) -> list[TrialRecord]:
    """At most `n` of the points, in their order: both ends, then always the one farthest from those chosen.

    Distances are of log latency ratios: a step from 0.2 to 0.1 is as far as one from 1 to 0.5.
    """
    if len(points) <= n:
        return list(points)
    places = np.log([ratio(point) for point in points])
    chosen = [0] if n == 1 else [0, len(points) - 1]
    while len(chosen) < n:
        distances = np.abs(places[:, None] - places[chosen]).min(axis=1)
        chosen.append(int(distances.argmax()))
    return [points[i] for i in sorted(chosen)]


def step_seconds(record: TrialRecord, records: Sequence[TrialRecord]) -> float:
    """Seconds of one training step: the record's own, else scaled from the other trials by multiply-accumulates."""
    own = _measured(record)
    if own is not None:
        return own
    others = [(found, other.n_macs) for other in records if (found := _measured(other)) is not None]
    if not others:
        return 1.0
    rates = [seconds / max(macs, 1) for seconds, macs in others]
    return float(np.median(rates)) * record.n_macs


def _measured(record: TrialRecord) -> float | None:
    steps = record.rungs[-1].steps if record.rungs else 0
    seconds = record.seconds.get("fine-tune", 0.0)
    return seconds / steps if steps and seconds > 0 else None
