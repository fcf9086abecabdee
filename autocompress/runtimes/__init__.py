"""Writes a compressed model as the target runtime's file, and runs that file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.batches import restored
from autocompress.devices import CPU, model_on, on_device, tensors_in
from autocompress.errors import ExportError
from autocompress.runtimes.capabilities import Capability, is_executed
from autocompress.runtimes.parity import Parity, check_parity
from autocompress.runtimes.registry import RUNTIMES, Runtime, Session, rounds_before_sums, runtime_named
from autocompress.runtimes.saturation import saturates
from autocompress.space.candidate import PRECISIONS, Precision
from autocompress.task import Inputs, Predict, Task, as_inputs, call_model

__all__ = [
    "PRECISIONS",
    "RUNTIMES",
    "Capability",
    "Parity",
    "Precision",
    "Runtime",
    "Session",
    "check_parity",
    "export",
    "export_for",
    "is_executed",
    "rounds_before_sums",
    "runtime_named",
    "saturates",
    "session_predict",
]


def export_for(task: Task, runtime: Runtime, student: nn.Module, example_inputs: Inputs, folder: Path) -> Path:
    """The file of a student for a task: of the example's shapes, but for the dimensions that the task calls dynamic.

    Raises:
        ExportError: see `Runtime.export`; or the runtime writes fixed shapes, and the task wants others.
    """
    dynamic_dims = getattr(task, "dynamic_dims", None)
    if not dynamic_dims:
        return runtime.export(student, example_inputs, folder)
    if "dynamic_dims" not in inspect.signature(runtime.export).parameters:
        raise ExportError(
            f"the task names dynamic_dims {dict(dynamic_dims)}, but runtime {runtime.name!r} writes files of fixed "
            "shapes; use onnxruntime or openvino, or pad all batches to one length and leave dynamic_dims out"
        )
    file: Path = runtime.export(student, example_inputs, folder, dynamic_dims=dynamic_dims)  # type: ignore[call-arg]
    return file


def session_predict(session: Session, model: Callable[[], nn.Module], example_inputs: Inputs) -> Predict:
    """Maps inputs to a loaded file's outputs in the form in which the model gives them.

    Args:
        session: of the file.
        model: gives the model that the file was written from, or another one of the same form, on the CPU and in
            evaluation mode; asked only where the file has several outputs.
        example_inputs: of the model.
    """
    known: list[Any] = []  # outputs of the model, which have the form

    def predict(inputs: Inputs) -> Any:
        outputs = session.predict(inputs)
        if isinstance(outputs, Tensor):
            return outputs
        if not known:
            with torch.no_grad():
                known.append(call_model(model(), example_inputs))
        return restored(known[0], tensors_in(outputs))

    return predict


def export(
    student: nn.Module,
    example_inputs: Inputs | Tensor,
    folder: str | Path,
    *,
    runtime: str = "onnxruntime",
    check_inputs: Inputs | Tensor | None = None,
) -> Path:
    """Writes the file that the runtime runs into `folder` (made if missing), checks it, and returns its path.

    Args:
        student: the model.
        example_inputs: of the shapes that the file will take.
        folder: for the file.
        runtime: a name in `RUNTIMES`, or `package.module:Class`.
        check_inputs: real inputs, any number of samples, on which file and model must agree; None takes the example's.

    Raises:
        ExportError: the model holds something that cannot be written, or the file gives something else than the model;
            names the layer where they part.
        InputError: no such runtime.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    engine, inputs = runtime_named(runtime), as_inputs(on_device(example_inputs, CPU))
    student = model_on(student, CPU)
    file = engine.export(student, inputs, target)
    was_training = student.training
    compared = inputs if check_inputs is None else as_inputs(on_device(check_inputs, CPU))
    check_parity(student.eval(), engine.load, file, compared)
    student.train(was_training)
    return file
