"""How long the exploration's fine-tunes may be, so that enough candidates are tried in the minutes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from autocompress.compression import Recipe, rebuild
from autocompress.devices import model_on
from autocompress.distillation.fine_tune import FineTune, Teacher
from autocompress.search_context import SearchContext, device_here

LEAST_TRIALS = 16
"""Candidates that a timed search should be able to train: fewer, and there is hardly a front to polish."""

_CANDIDATE_SHARE = 0.6  # of the uncompressed model's training cost: candidates are smaller, and some are ended early
_TIMED_STEPS = 2


def fitted_rungs(
    rungs: Sequence[int], step_seconds: float, other_seconds: float, seconds: float, n_workers: int
) -> tuple[int, ...]:
    """The longest beginning of `rungs` with which `LEAST_TRIALS` trials fit; at least the first two.

    Args:
        rungs: of a fine-tune.
        step_seconds: of one training step of the uncompressed model on a worker.
        other_seconds: of a trial, for all but training.
        seconds: of the exploration.
        n_workers: trials at the same time.
    """
    for n in range(len(rungs), 2, -1):
        trial_seconds = rungs[n - 1] * step_seconds * _CANDIDATE_SHARE + other_seconds
        if LEAST_TRIALS * trial_seconds <= seconds * n_workers:
            return tuple(rungs[:n])
    return tuple(rungs[:2])


def training_step_seconds(context: SearchContext) -> float:
    """Seconds of one training step of the uncompressed model; the first step is not counted. On a CPU one thread."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = model_on(context.model, device_here(context.settings))
        student = rebuild(model, context.graph, Recipe())
        fine_tune = FineTune(student, Teacher(model), context.task, context.settings.distill)
        fine_tune.advance(1)
        begin = time.perf_counter()
        fine_tune.advance(1 + _TIMED_STEPS)
        return (time.perf_counter() - begin) / _TIMED_STEPS
    finally:
        torch.set_num_threads(n_threads)
