"""Checks that an exported file gives what the PyTorch student gives on real inputs, and finds where they part."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from autocompress.compression.quantize import RoundedLayer
from autocompress.errors import ExportError
from autocompress.runtimes.node_names import module_of
from autocompress.runtimes.registry import Runtime
from autocompress.task import Inputs, call_model

TOLERANCE = 0.01
"""Largest relative error (norm of the difference over the norm) of a float32 file."""

ROUNDED_TOLERANCE = 0.15
"""The same where layers are rounded: a value half way between two levels goes to either, and that adds up by depth."""


def tolerance_of(student: nn.Module) -> float:
    """The relative error up to which a file of this student is accepted."""
    return ROUNDED_TOLERANCE if any(isinstance(m, RoundedLayer) for m in student.modules()) else TOLERANCE


def check_parity(student: nn.Module, runtime: Runtime, file: Path, inputs: Inputs, n_threads: int = 1) -> float:
    """The relative error of the file's outputs on these inputs.

    Args:
        student: in evaluation mode.
        runtime: that wrote the file.
        file: of the student.
        inputs: real ones, any number of samples.
        n_threads: of the runtime.

    Raises:
        ExportError: the outputs differ beyond the tolerance, or are not finite; names the layer where they part.
    """
    with torch.no_grad():
        expected: Tensor = call_model(student, inputs)
    found = runtime.load(file, n_threads).predict(inputs)
    error, tolerance = _relative_error(found, expected), tolerance_of(student)
    if error <= tolerance:
        return error
    place = parting_layer(student, runtime, file, inputs, tolerance)
    raise ExportError(
        f"the file must give what the model gives, within a relative error of {tolerance:g}, but {file.name} "
        f"differs by {error:.3g} on these inputs; they part at {place}; keep "
        "that layer at 32 bits, or look for values that are not finite there"
    )


def parting_layer(student: nn.Module, runtime: Runtime, file: Path, inputs: Inputs, tolerance: float) -> str:
    """Name of the first layer whose output differs beyond the tolerance, as far as the file's format tells."""
    if file.suffix != ".onnx":
        return "a layer that this format does not name"
    model = onnx.load(file)
    ends = _layer_ends(student, model)
    wanted = _outputs_of(student, ends, inputs)
    for path, value in ends.items():
        if path not in wanted:
            continue
        found = _run_to(runtime, model, value, wanted[path], inputs)
        if _relative_error(found.reshape(wanted[path].shape), wanted[path]) > tolerance:
            return f"layer {path!r}"
    return "what follows the last layer"


def _relative_error(found: Tensor, expected: Tensor) -> float:
    if not bool(torch.isfinite(found).all() and torch.isfinite(expected).all()):
        return float("inf")
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


def _layer_ends(student: nn.Module, model: onnx.ModelProto) -> dict[str, str]:
    """Path of a module with weights -> the last value that its nodes write, in the order of the file."""
    modules = dict(student.named_modules())
    ends: dict[str, str] = {}
    for node in model.graph.node:
        path = module_of(node.name)
        weighted = path in modules and any(True for _ in modules[path].parameters(recurse=False))
        if weighted and not isinstance(modules[path], nn.RNNBase):
            ends[path] = node.output[0]
    return ends


def _outputs_of(student: nn.Module, paths: dict[str, str], inputs: Inputs) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        return lambda module, args, output: outputs.__setitem__(path, output) if isinstance(output, Tensor) else None

    handles = [student.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    try:
        with torch.no_grad():
            call_model(student, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _run_to(runtime: Runtime, model: onnx.ModelProto, value: str, expected: Tensor, inputs: Inputs) -> Tensor:
    """What the runtime computes for one value of the graph."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))
    with tempfile.TemporaryDirectory(prefix="autocompress-") as name:
        file = Path(name) / "part.onnx"
        onnx.save(part, file)
        return runtime.load(file).predict(inputs)
