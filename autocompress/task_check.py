"""Tries the parts of a user's task before any long work, and checks what its `evaluate` gives."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.batches import check_common_size
from autocompress.devices import CPU, full_precision, on_device, tensors_in, widened
from autocompress.errors import AutocompressError, InputError
from autocompress.metrics import main_output
from autocompress.settings_schema import shown
from autocompress.task import N_CALIBRATION_BATCHES, Batch, Inputs, Task, as_batch, as_inputs, call_model, raised_at

_MAX_CALIBRATION, _SECONDS = 1024, 10.0


def check_task(task: Task) -> None:
    """Tries the task's parts on one batch each, so that a mistake shows before any long work.

    Builds the model, runs it on its example inputs, on one calibration batch and on one training batch with its loss.
    The metrics are judged by `check_metrics` when they are first computed.

    Raises:
        InputError: a part fails, has the wrong form, or gives a loss that is not a finite scalar.
    """
    model = attempt("build_model()", task.build_model)
    if not isinstance(model, nn.Module):
        raise InputError(f"`build_model()` must return an nn.Module, but returned {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        kind = "scripted or traced" if isinstance(model, torch.jit.ScriptModule) else "compiled"
        raise InputError(f"`build_model()` must return the module itself, but it is {kind}; return what it was made of")
    if model.training:
        raise InputError(
            "`build_model()` must return the model in eval mode, but it is in training mode; call `.eval()` on it"
        )
    model = widened(model.cpu())
    with torch.no_grad():
        examples = as_inputs(attempt("example_inputs()", task.example_inputs))
        _require_samples(examples, "example_inputs()")
        _run(model, examples, "example_inputs()")
        _run(model, _last_calibration(task), "calibration_batches()")
        batch = as_batch(_first("train_batches(seed=0)", lambda: task.train_batches(0)))
        _check_devices(batch)
        batch = full_precision(on_device(batch, CPU))
        outputs = _run(model, batch[0], "train_batches(seed=0)")
        loss = attempt("loss(outputs, batch)", lambda: task.loss(outputs, batch))
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(torch.isfinite(loss).all()):
        value = f"{loss.item()}" if isinstance(loss, Tensor) and loss.numel() == 1 else _describe(loss)
        raise InputError(
            f"`loss` must be a finite scalar tensor on the first training batch, but got {value}; "
            "check the model's weights, the inputs' normalisation and the targets"
        )
    for split in ("selection", "test"):
        _touch(task, model, split)


class _TouchedError(Exception):
    """The first batch of a split was reached."""


def _touch(task: Task, model: nn.Module, split: str) -> None:
    """Runs the model on the first batch of a split, and goes no further."""

    def predict(inputs: Inputs) -> Any:
        _run(model, as_inputs(inputs), f"evaluate(predict, {split!r})")
        raise _TouchedError

    def evaluate() -> None:
        with contextlib.suppress(_TouchedError):
            task.evaluate(predict, split)

    attempt(f"evaluate(predict, {split!r})", evaluate)


def _check_devices(batch: Batch) -> None:
    devices = sorted({str(tensor.device) for tensor in tensors_in(batch)})
    if len(devices) > 1:
        raise InputError(
            f"the tensors of a training batch must be on one device, but are on {devices}; leave them on the CPU, from "
            "where each worker moves them to its own device"
        )


def _last_calibration(task: Task) -> Inputs:
    """The last calibration batch, after all were looked at."""
    begin, found, n_batches = time.monotonic(), None, 0
    for batch in attempt("calibration_batches()", lambda: iter(task.calibration_batches())):
        found, n_batches = as_inputs(batch), n_batches + 1
        _require_samples(found, "calibration_batches()")
        late = time.monotonic() - begin > _SECONDS
        if n_batches > _MAX_CALIBRATION or (late and n_batches > 16 * N_CALIBRATION_BATCHES):
            raise InputError(
                f"`calibration_batches()` must end after at most {_MAX_CALIBRATION} batches, but gives more; "
                f"{N_CALIBRATION_BATCHES} are enough"
            )
    if found is None:
        raise InputError("the task's `calibration_batches()` must yield at least one batch, but yields none")
    return found


def _require_samples(inputs: Inputs, source: str) -> None:
    if any(tensor.dim() == 0 or tensor.shape[0] == 0 for tensor in tensors_in(inputs)):
        raise InputError(
            f"`{source}` must hold at least one sample along the first dimension, but got {_describe(inputs)}"
        )


def check_metrics(figures: object, split: str) -> dict[str, float]:
    """What `evaluate` returned, as floats.

    Raises:
        InputError: it is not a non-empty dict of finite numbers.
    """
    if not isinstance(figures, Mapping) or not figures:
        raise InputError(f"`evaluate(predict, {split!r})` must return a dict of figures, but returned {shown(figures)}")
    for name, value in figures.items():
        if not isinstance(name, str):
            raise InputError(f"`evaluate(predict, {split!r})` must name its figures by texts, but one is {shown(name)}")
        if not _is_finite(value):
            raise InputError(
                f"`evaluate(predict, {split!r})` must return finite numbers, but {name!r} is {shown(value)}; "
                "check the metric on the uncompressed model"
            )
    return {name: float(value) for name, value in figures.items()}


def _is_finite(value: Any) -> bool:
    """Whether it is a finite number, also one of NumPy's or torch's."""
    if isinstance(value, str | bytes | bool):
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


def attempt(what: str, call: Callable[[], Any]) -> Any:
    """Calls a part of a user's task.

    Raises:
        InputError: it raises; names the line of the user's own code.
    """
    try:
        return call()
    except AutocompressError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"the task's `{what}` must work, but {raised_at(error)}") from error


def _first(what: str, batches: Callable[[], Iterable[Any]]) -> Any:
    batch = attempt(what, lambda: next(iter(batches()), None))
    if batch is None:
        raise InputError(f"the task's `{what}` must yield at least one batch, but yields none")
    return batch


def _run(model: nn.Module, inputs: Inputs, source: str) -> Any:
    check_common_size(inputs, f"`{source}`")
    try:
        outputs = call_model(model, full_precision(on_device(inputs, CPU)))
    except Exception as error:
        raise InputError(
            f"the model must run on the inputs of `{source}` ({_describe(inputs)}), but {raised_at(error)}"
        ) from error
    main_output(outputs)
    return outputs


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_describe(part)}" for key, part in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(_describe(part) for part in value)
    return type(value).__name__
