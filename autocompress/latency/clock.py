"""Times a loaded file: in rounds that alternate, run by run, with a reference.

A clock that drifts (frequency, neighbours) moves both alike, so the paired ratio is what can be trusted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autocompress.errors import MeasurementError

_ROUND_SECONDS = 0.06
_PAUSE_SECONDS = 0.01
_WARM_UP_SECONDS = 0.05
_MIN_PAIRS, _MAX_PAIRS = 5, 60

Run = Callable[[], object]


@dataclass(frozen=True)
class PairedTiming:
    """Two runs timed against each other.

    Attributes:
        ratio: median over rounds of the median of (candidate seconds / reference seconds).
        spread: half the interquartile range of the rounds' ratios.
        candidate_ms, reference_ms: medians over all runs, milliseconds.
        n_rounds, n_runs: rounds, and timed runs of the candidate in all.
    """

    ratio: float
    spread: float
    candidate_ms: float
    reference_ms: float
    n_rounds: int
    n_runs: int


def time_pair(candidate: Run, reference: Run, n_rounds: int = 9) -> PairedTiming:
    """Times `candidate` against `reference`, both of them runs without arguments.

    Each timed run follows an untimed one of the same model, so that caches hold what they hold in steady use. Rounds
    are apart in time, so that a short disturbance spoils one of them, not the median.

    Raises:
        MeasurementError: the clock gave nothing usable.
    """
    seconds = max(_warm_up(candidate), _warm_up(reference))
    n_pairs = int(np.clip(_ROUND_SECONDS / max(4 * seconds, 1e-7), _MIN_PAIRS, _MAX_PAIRS))
    timings = np.empty((n_rounds, n_pairs, 2))
    for i in range(n_rounds):
        for j in range(n_pairs):
            timings[i, j, 0] = _once(candidate)
            timings[i, j, 1] = _once(reference)
        time.sleep(_PAUSE_SECONDS)
    if not (timings > 0).all():
        raise MeasurementError("a run took no measurable time; time a larger batch")
    by_round = np.median(timings[:, :, 0] / timings[:, :, 1], axis=1)
    low, middle, high = np.percentile(by_round, [25, 50, 75])
    candidate_ms, reference_ms = np.median(timings, axis=(0, 1)) * 1e3
    return PairedTiming(
        float(middle), float(high - low) / 2, float(candidate_ms), float(reference_ms), n_rounds, timings[:, :, 0].size
    )


def _once(run: Run) -> float:
    run()
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _warm_up(run: Run) -> float:
    """Runs for a while (at least twice); returns the seconds of one run."""
    begin = time.perf_counter()
    n_runs = 0
    while n_runs < 2 or time.perf_counter() - begin < _WARM_UP_SECONDS:
        run()
        n_runs += 1
    return (time.perf_counter() - begin) / n_runs
