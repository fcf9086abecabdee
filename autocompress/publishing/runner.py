"""Makes a front point's folder self-contained: `run.py`, a few example inputs, and the memory that the model takes."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from autocompress.task import Inputs

EXAMPLES, RUNNER = "examples.npz", "run.py"
RUNNABLE = ("onnxruntime", "openvino", "torch")
"""Runtimes that `run.py` can open."""
_MAX_EXAMPLES, _MAX_BYTES = 8, 8 * 2**20
_SECONDS = 120


def write_runner(folder: Path) -> None:
    """Writes `run.py`, which needs the runtime and numpy and nothing else."""
    text = resources.files("autocompress.publishing").joinpath(RUNNER).read_text(encoding="utf-8")
    (folder / RUNNER).write_text(text, encoding="utf-8")


def choose_examples(inputs: Inputs) -> Inputs:
    """The first samples of a batch: at most 8, and fewer where 8 would take more than 8 MiB."""
    tensors = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
    each = sum(tensor[0].numel() * tensor.element_size() for tensor in tensors)
    n_samples = max(1, min(_MAX_EXAMPLES, _MAX_BYTES // max(1, each)))
    if isinstance(inputs, dict):
        return {name: tensor[:n_samples] for name, tensor in inputs.items()}
    return tuple(tensor[:n_samples] for tensor in inputs)


def write_examples(folder: Path, inputs: Inputs, outputs: Tensor) -> dict[str, Any]:
    """Writes `examples.npz`, which holds no pickles; returns what the manifest says of it.

    For each sample that is the output where it is a single number, else the position of the largest.

    Args:
        folder: of the point.
        inputs: few samples; arrays are stored under the inputs' names, or their positions.
        outputs: what the exported file gave for them, shape (n_samples, ...).
    """
    named = inputs if isinstance(inputs, dict) else {str(i): tensor for i, tensor in enumerate(inputs)}
    arrays: dict[str, Any] = {name: tensor.detach().cpu().numpy() for name, tensor in named.items()}
    np.savez(folder / EXAMPLES, **arrays)
    rows = outputs.reshape(len(outputs), -1)
    if rows.shape[1] == 1:
        return {"file": EXAMPLES, "output": [float(f"{value:.6g}") for value in rows.flatten().tolist()]}
    return {"file": EXAMPLES, "largest_output": rows.argmax(1).tolist()}


def measure_memory(folder: Path) -> float | None:
    """MiB that loading the file and running the examples adds to a process that holds only the runtime and numpy.

    Runs the folder's `run.py` in a process of its own; None where the system does not tell.
    """
    command = [sys.executable, str(folder / RUNNER), "--memory"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    figure = done.stdout.removeprefix("memory:").removesuffix("MiB\n")
    return float(figure) if done.returncode == 0 else None
