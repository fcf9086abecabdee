"""Writes a compressed model as the target runtime's file, and runs that file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from autocompress.candidate import PRECISIONS, Precision
from autocompress.runtimes.capabilities import Capability, is_executed
from autocompress.runtimes.registry import RUNTIMES, Runtime, Session, runtime_named
from autocompress.task import Inputs, as_inputs

__all__ = [
    "PRECISIONS",
    "RUNTIMES",
    "Capability",
    "Precision",
    "Runtime",
    "Session",
    "export",
    "is_executed",
    "runtime_named",
]


def export(
    student: nn.Module, example_inputs: Inputs | Tensor, folder: str | Path, *, runtime: str = "onnxruntime"
) -> Path:
    """Writes the file that the runtime runs into `folder` (made if missing) and returns its path.

    Raises:
        ExportError: the model holds something that cannot be written.
        InputError: no such runtime.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    return runtime_named(runtime).export(student, as_inputs(example_inputs), target)
