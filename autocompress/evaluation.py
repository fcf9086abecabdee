"""Judges a model, or a file loaded by its runtime, on a split of a task: the one place where metrics come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress.batches import n_samples as n_samples_in
from autocompress.devices import device_in, device_of, full_precision, is_half, on_device
from autocompress.errors import InputError
from autocompress.runtimes import Session, runtime_named, session_predict
from autocompress.settings_schema import require_count, require_kind
from autocompress.task import Inputs, Predict, Task, call_model
from autocompress.task_access import examples_of, model_of
from autocompress.task_check import check_metrics

LockContext = Callable[[], AbstractContextManager[None]]


def evaluate(
    model: nn.Module | str | Path, task: Task, split: str = "test", *, runtime: str = "onnxruntime", n_threads: int = 1
) -> dict[str, float]:
    """The metrics of a PyTorch model, or of an exported file, on a split of a task.

    Args:
        model: a module, which is put into evaluation mode, or the path of a file that `export` wrote.
        task: judges.
        split: "selection", "test", or a further one of the task's own.
        runtime: that loads the file.
        n_threads: of the runtime.

    Raises:
        InputError: no such file or split, or not the model that the task judges.
    """
    require_kind("model", model, "an nn.Module or the path of an exported file", nn.Module, str, Path)
    require_kind("split", split, "a text", str)
    require_count("n_threads", n_threads)
    if not isinstance(model, nn.Module) and not Path(model).exists():
        raise InputError(f"the exported file must exist, but there is no {model}")
    if isinstance(model, nn.Module):
        return evaluate_model(model.eval(), task, split)
    metrics, _ = evaluate_session(runtime_named(runtime).load(Path(model), n_threads), task, split)
    return metrics


def evaluate_model(
    model: nn.Module,
    task: Task,
    split: str = "selection",
    *,
    n_samples: int | None = None,
    lock: LockContext = nullcontext,
) -> dict[str, float]:
    """The metrics of a PyTorch model, without gradients.

    Args:
        model: in evaluation mode.
        task: judges.
        split: of the task.
        n_samples: judge on about this number of samples where the task has `evaluate_subset`; None judges on all.
        lock: held for each batch.
    """
    predict = ModelPredict(model, lock)
    if n_samples is not None and judges_parts(task):
        return check_metrics(task.evaluate_subset(predict, split, n_samples), split)  # type: ignore[attr-defined]
    return check_metrics(task.evaluate(predict, split), split)


class ModelPredict:
    """Maps inputs, wherever they are, to a model's outputs on the inputs' own device.

    Args:
        model: in evaluation mode.
        lock: held for each batch.

    Attributes:
        device: of the model; a task that moves its batches there gets its outputs there.
    """

    def __init__(self, model: nn.Module, lock: LockContext = nullcontext) -> None:
        self._model, self._lock = model, lock
        self.device = device_of(model)
        self._fed: Callable[[Any], Any] = _unchanged if is_half(model) else full_precision

    def __call__(self, inputs: Inputs) -> Any:
        """Outputs, without gradients."""
        with self._lock(), torch.no_grad():
            outputs = call_model(self._model, self._fed(on_device(inputs, self.device)))
            return on_device(outputs, device_in(inputs))


def _unchanged(inputs: Any) -> Any:
    return inputs


def judges_parts(task: Task) -> bool:
    """Whether `evaluate_subset` judges as `evaluate` does: not where a subclass has an `evaluate` of its own alone."""
    kinds = type(task).__mro__
    places = [
        next((i for i, kind in enumerate(kinds) if name in vars(kind)), None)
        for name in ("evaluate_subset", "evaluate")
    ]
    subset, whole = places
    return (
        subset is not None and whole is not None and subset <= whole and "evaluate" not in getattr(task, "__dict__", {})
    )


def evaluate_session(session: Session, task: Task, split: str) -> tuple[dict[str, float], int]:
    """The metrics of a loaded file, and its number of samples."""
    predict = session_predict(session, lambda: model_of(task), examples_of(task))
    return evaluate_predict(predict, task, split)


def evaluate_predict(predict_with: Predict, task: Task, split: str) -> tuple[dict[str, float], int]:
    """The metrics of what maps inputs on the CPU to outputs, and how many samples it was asked for."""
    counted: Counter[str] = Counter()

    def predict(inputs: Inputs) -> Any:
        counted[split] += n_samples_in(inputs)
        return on_device(predict_with(inputs), device_in(inputs))

    return check_metrics(task.evaluate(predict, split), split), counted[split]
