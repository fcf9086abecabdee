"""Judges a model, or a file loaded by its runtime, on a split of a task: the one place where metrics come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.runtimes import Session, runtime_named
from autocompress.settings_schema import require_count, require_kind
from autocompress.task import Inputs, Task, call_model, check_metrics

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

    def predict(inputs: Inputs) -> Tensor:
        with lock(), torch.no_grad():
            outputs: Tensor = call_model(model, inputs)
        return outputs

    if n_samples is not None and judges_parts(task):
        return check_metrics(task.evaluate_subset(predict, split, n_samples), split)  # type: ignore[attr-defined]
    return check_metrics(task.evaluate(predict, split), split)


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
    counted: Counter[str] = Counter()

    def predict(inputs: Inputs) -> Tensor:
        outputs = session.predict(inputs)
        counted[split] += outputs.shape[0]
        return outputs

    return check_metrics(task.evaluate(predict, split), split), counted[split]
