"""Which front points are trained further, in which order, and for how many steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.execution.run_clock import RunClock
from autocompress.results.objectives import Objectives, ratio
from autocompress.results.pareto import front_of
from autocompress.results.records import TrialRecord
from autocompress.sampling.study import POLISHED

_LEAST_STEPS = 100  # fewer are not worth a trial's start
_SAFETY = 0.85  # share of the time that is planned with: its start and its judging take the rest


@dataclass(frozen=True)
class Polish:
    """One point to train further.

    Attributes:
        origin: the record whose structure is trained.
        steps: of training.
    """

    origin: TrialRecord
    steps: int


@dataclass(frozen=True)
class PolishSettings:
    """How much training the front's points get.

    Attributes:
        n_points: front points that are polished, spread over the front.
        steps: of each point; None divides the time that is left.
        n_workers: that train at the same time.
    """

    n_points: int
    steps: int | None
    n_workers: int


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
        origin = left[0]
        steps = self._settings.steps or self._steps_of(origin, left, records, len(running))
        return Polish(origin, steps) if steps >= _LEAST_STEPS or self._settings.steps else None

    def _points(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        """Front points that training may lift, slowest first; spread over the latencies where there are too many."""
        front = front_of(records, self._objectives)
        if front.reason:
            return []
        baseline = front.baseline
        top = self._objectives.gain_of(baseline) if baseline is not None else float("inf")
        points = [
            point for point in front.points if not point.candidate.is_baseline and self._objectives.gain_of(point) < top
        ]
        points.sort(key=ratio, reverse=True)
        return spread(points, self._settings.n_points)

    def _steps_of(
        self, origin: TrialRecord, left: Sequence[TrialRecord], records: Sequence[TrialRecord], n_running: int
    ) -> int:
        """Steps such that all points that are left share the time that is left, by their cost of a step."""
        seconds = self._clock.training_left
        if seconds is None:
            return 0
        cost = {record.number: step_seconds(record, records) for record in left}
        total = sum(cost.values())
        n_rounds = -(-len(left) // self._settings.n_workers)  # the last round's workers wait for the slowest
        share = cost[origin.number] * self._settings.n_workers / total if total else 1.0
        mine = min(seconds / n_rounds, seconds * share) if n_rounds > 1 else seconds
        return int(_SAFETY * mine / max(cost[origin.number], 1e-6))


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
