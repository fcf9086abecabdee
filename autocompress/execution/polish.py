"""Which front points are trained further, in which order, and for how many steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autocompress.execution.run_clock import RunClock
from autocompress.results.objectives import Objectives, default_limit, ratio
from autocompress.results.pareto import front_of
from autocompress.results.records import TrialRecord
from autocompress.sampling.study import POLISHED

_LEAST_STEPS = 40  # fewer are not worth a trial's start
_LEAST_DEFICIT = 0.25  # where time is short: of the largest deficit; points nearer to the uncompressed model are left
_GOOD_STEPS = 600  # where time is short, fewer points are polished, so that each gets about this many
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

    Args:
        objectives: of the search.
        settings: how much.
        clock: of this start.
    """

    def __init__(self, objectives: Objectives, settings: PolishSettings, clock: RunClock) -> None:
        self._objectives, self._settings, self._clock = objectives, settings, clock

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
        origin, n_left = left[0], len(left)
        if not self._settings.steps:
            n_left = self._n_that_fit(left, records)
            if n_left < len(left):
                left = self._worthwhile(left, records)
                n_left = min(n_left, len(left))
            reached = [point for point in wanted if point.candidate.digest in done]
            origin = next_of(left, reached, n_left)
        if self._settings.steps:
            return Polish(origin, self._settings.steps)
        seconds = self._seconds_of(origin, left, records, n_left)
        steps = int(_SAFETY * seconds / max(step_seconds(origin, records), 1e-6))
        return Polish(origin, steps, seconds) if steps >= _LEAST_STEPS else None

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

    def _n_that_fit(self, left: Sequence[TrialRecord], records: Sequence[TrialRecord]) -> int:
        """How many of the points can get `_GOOD_STEPS`; at least one for each worker, if there are as many."""
        seconds = _SAFETY * (self._clock.training_left or 0.0) * self._settings.n_workers
        for n in range(len(left), 1, -1):
            if sum(_GOOD_STEPS * step_seconds(point, records) for point in spread(left, n)) <= seconds:
                return n
        return min(len(left), self._settings.n_workers)

    def _seconds_of(
        self, origin: TrialRecord, left: Sequence[TrialRecord], records: Sequence[TrialRecord], n_left: int
    ) -> float:
        """Time such that `n_left` points share what is left, by their cost of a step."""
        seconds = self._clock.training_left
        if seconds is None:
            return 0.0
        n_rounds = -(-n_left // self._settings.n_workers)  # the last round's workers wait for the slowest
        if n_rounds == 1:
            return seconds
        mine = step_seconds(origin, records)
        mean = float(np.mean([step_seconds(record, records) for record in left]))
        share = min(1.0, mine / max(mean, 1e-9) * self._settings.n_workers / n_left)
        return min(seconds / n_rounds, seconds * share)


def next_of(left: Sequence[TrialRecord], reached: Sequence[TrialRecord], n: int) -> TrialRecord:
    """The next of `n` points to polish: slowest first, spread from the fastest one reached so far on.

    Args:
        left: points that may be polished, slowest first; at least one.
        reached: those that were or are being polished.
        n: how many of those left will be.
    """
    if not reached:
        return spread(left, n)[0]
    last = min(reached, key=ratio)
    faster = [point for point in left if ratio(point) < ratio(last)]
    return spread([last, *faster], n + 1)[1] if faster else left[0]


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
