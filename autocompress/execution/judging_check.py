"""Tries a task's judging on the uncompressed model before any long work: every split, twice, and percentages."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from autocompress.batches import n_samples as n_samples_of
from autocompress.devices import tensors_in
from autocompress.errors import InputError
from autocompress.evaluation import ModelPredict, evaluate_model, judges_parts
from autocompress.files import digest_of
from autocompress.publishing.export_point import splits_of
from autocompress.report.wording import is_share
from autocompress.task import Inputs, Task
from autocompress.task_check import attempt, check_metrics

_SECONDS, _N_AGAIN = 10.0, 3  # after which a split that repeats its first batch is endless
_N_COMPARED = 16_384  # numbers of a batch, from its beginning
_N_TWICE = 256  # samples that are judged twice, where the task can judge some
_QUICK_SECONDS = 5.0  # a task that cannot is judged twice where judging takes less


def judge_splits(model: nn.Module, task: Task) -> tuple[dict[str, float], int, list[str]]:
    """The uncompressed model's metrics on the selection split, judged on its device; the others are only tried.

    Returns:
        The metrics, the number of samples behind them, and what the user should know: that two judgements differ.

    Raises:
        InputError: `evaluate` raises, or does not give finite numbers, on a split.
    """
    found: dict[str, dict[str, float]] = {}
    n_samples: dict[str, int] = {}
    begin = time.monotonic()
    for split in splits_of(task):
        whole = split == "selection" or not judges_parts(task)
        found[split], n_samples[split] = _judged(model, task, split, None if whole else _N_TWICE)
        lost = set(found["selection"]) - set(found[split])
        if lost:
            raise InputError(
                f"`evaluate(predict, {split!r})` must give what it gives for 'selection', but {sorted(lost)[0]!r} is "
                "missing"
            )
    is_quick = time.monotonic() - begin < _QUICK_SECONDS
    notes = _differences(model, task) if is_quick or judges_parts(task) else []
    return found["selection"], n_samples["selection"], notes


def _judged(model: nn.Module, task: Task, split: str, n_asked: int | None) -> tuple[dict[str, float], int]:
    """The metrics on a split whose end is not known, or on about `n_asked` samples of it, and how many there were."""
    begin, first, n_again, n_samples = time.monotonic(), "", 0, 0
    outputs_of = ModelPredict(model)

    def predict(inputs: Inputs) -> Any:
        nonlocal first, n_again, n_samples
        found = _digest(inputs)
        first = first or found
        n_again += found == first
        if n_again > _N_AGAIN and time.monotonic() - begin > _SECONDS:
            raise InputError(f"the split {split!r} must end, but it gives the same batches again and again")
        n_samples += n_samples_of(inputs)
        return outputs_of(inputs)

    judge = partial(task.evaluate, predict, split)
    if n_asked is not None:
        judge = partial(task.evaluate_subset, predict, split, n_asked)  # type: ignore[attr-defined]
    return check_metrics(attempt(f"evaluate(predict, {split!r})", judge), split), n_samples


def _digest(inputs: Inputs) -> str:
    tensors = (tensor.detach().flatten() for tensor in tensors_in(inputs))
    parts = (tensor[:_N_COMPARED].cpu().contiguous().view(torch.uint8) for tensor in tensors)
    return "".join(digest_of(part.numpy().tobytes()) for part in parts)


def _differences(model: nn.Module, task: Task) -> list[str]:
    """A note where the same model is judged differently twice."""

    def judged() -> dict[str, float]:
        return evaluate_model(model, task, "selection", n_samples=_N_TWICE)

    first, second = (attempt("evaluate(predict, 'selection')", judged) for _ in range(2))
    spread = {name: abs(value - second.get(name, value)) for name, value in first.items()}
    odd = [f"{name} by {value:.3g}" for name, value in spread.items() if value > 1e-6 * max(1.0, abs(first[name]))]
    if not odd:
        return []
    return [
        f"`evaluate` gives something else each time: two judgements of the uncompressed model differ in "
        f"{', '.join(odd)}; smaller differences between trials say nothing. Fix its random state"
    ]


def check_share(metric: str, metrics: Mapping[str, float], limit: float | None) -> None:
    """Refuses percentages where a share is meant.

    Raises:
        InputError: an accuracy, or the limit of one, is above 1.
    """
    if not is_share(metric):
        return
    for name, value in ((metric, metrics[metric]), ("min_accuracy", limit)):
        if value is not None and not 0.0 <= value <= 1.0:
            raise InputError(
                f"`0 <= {name} <= 1` must hold for the metric {metric!r}, which is a share, but got {value:g}; divide "
                f"percentages by 100, or give the metric another name, such as {metric}_percent"
            )
