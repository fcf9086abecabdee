"""Writes a compressed model as the target runtime's file, and runs that file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from autocompress.runtimes.capabilities import Capability, is_executed
from autocompress.runtimes.parity import Parity, check_parity
from autocompress.runtimes.registry import RUNTIMES, Runtime, Session, rounds_before_sums, runtime_named
from autocompress.runtimes.saturation import saturates
from autocompress.space.candidate import PRECISIONS, Precision
from autocompress.task import Inputs, as_inputs

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
    "is_executed",
    "rounds_before_sums",
    "runtime_named",
    "saturates",
]


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
    engine, inputs = runtime_named(runtime), as_inputs(example_inputs)
    file = engine.export(student, inputs, target)
    was_training = student.training
    check_parity(student.eval(), engine.load, file, inputs if check_inputs is None else as_inputs(check_inputs))
    student.train(was_training)
    return file
