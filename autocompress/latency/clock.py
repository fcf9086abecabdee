"""Times a loaded file: in rounds that alternate, run by run, with a reference.

A clock that drifts changes both alike, so the paired ratio can be trusted. A busy neighbour on the same physical
core does not: integer kernels lose up to half their speed to it, float ones a quarter. It only ever adds time, so the
latency is a low quantile of the runs, which is their time while no neighbour is busy. On a CUDA device the device's own
events count, which see neither Python nor the queue before them. This module goes into the on-device script.
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
_IDLE_PERCENTILE = 10  # of the runs: the time of a run on an idle machine

Run = Callable[[], object]
Timer = Callable[[Run], float]
"""Seconds of one run."""


@dataclass(frozen=True)
class PairedTiming:
    """Two runs timed against each other.

    Attributes:
        ratio: candidate_ms / reference_ms.
        spread: half the interquartile range of the single rounds' ratios.
        candidate_ms, reference_ms: tenth percentile of all runs, milliseconds.
        n_rounds, n_runs: rounds, and timed runs of the candidate in all.
    """

    ratio: float
    spread: float
    candidate_ms: float
    reference_ms: float
    n_rounds: int
    n_runs: int


def wall_seconds(run: Run) -> float:
    """By the machine's clock, of a run that ends when its work is done."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def time_pair(candidate: Run, reference: Run, n_rounds: int = 9, timer: Timer = wall_seconds) -> PairedTiming:
    """Times `candidate` against `reference`, both of them runs without arguments.

    Each timed run follows an untimed one of the same model, so that caches hold what they hold in steady use. Rounds
    are apart in time, so that a short disturbance spoils one of them.

    Raises:
        MeasurementError: the clock gave nothing usable.
    """
    seconds = max(_warm_up(candidate), _warm_up(reference))
    n_pairs = int(np.clip(_ROUND_SECONDS / max(4 * seconds, 1e-7), _MIN_PAIRS, _MAX_PAIRS))
    timings = np.empty((n_rounds, n_pairs, 2))
    for i in range(n_rounds):
        for j in range(n_pairs):
            for k, run in enumerate((candidate, reference)):
                run()
                timings[i, j, k] = timer(run)
        time.sleep(_PAUSE_SECONDS)
    if not (timings > 0).all():
        raise MeasurementError("a run took no measurable time; time a larger batch")
    by_round = np.percentile(timings, _IDLE_PERCENTILE, axis=1)
    low, high = np.percentile(by_round[:, 0] / by_round[:, 1], [25, 75])
    candidate_ms, reference_ms = (np.percentile(timings, _IDLE_PERCENTILE, axis=(0, 1)) * 1e3).tolist()
    ratio = candidate_ms / reference_ms
    return PairedTiming(ratio, float(high - low) / 2, candidate_ms, reference_ms, n_rounds, timings[:, :, 0].size)


def _warm_up(run: Run) -> float:
    """Runs for a while (at least twice); returns the seconds of one run."""
    begin = time.perf_counter()
    n_runs = 0
    while n_runs < 2 or time.perf_counter() - begin < _WARM_UP_SECONDS:
        run()
        n_runs += 1
    return (time.perf_counter() - begin) / n_runs


def timer_of(session: object) -> Timer:
    """CUDA events for sessions whose work is in PyTorch's current CUDA stream; the machine's clock for all others.

    ONNX Runtime has a stream of its own and returns when the outputs are there: its runs are timed from outside.
    """
    return cuda_seconds if getattr(session, "device", None) == "cuda" else wall_seconds


def cuda_seconds(run: Run) -> float:
    """Between an event before and one after the run, on the device."""
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
