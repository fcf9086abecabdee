"""Checks that an exported file gives the PyTorch student's outputs on real inputs, and finds the layer that differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autocompress.batches import restored
from autocompress.compression.quantize import QuantizedLayer
from autocompress.devices import tensors_in
from autocompress.errors import ExportError
from autocompress.locked_temp_dir import LockedTempDir
from autocompress.metrics import main_output
from autocompress.runtimes.node_names import module_of
from autocompress.runtimes.registry import Session
from autocompress.task import Inputs, call_model

TOLERANCE = 0.01
"""Largest relative error (norm of the difference over the norm) of a float32 file."""

ROUNDED_TOLERANCE = 0.15
"""The same where layers are rounded: a value half way between two levels goes to either, and that adds up by depth."""


def tolerance_of(student: nn.Module) -> float:
    """The relative error up to which a file of this student is accepted."""
    return ROUNDED_TOLERANCE if any(isinstance(m, QuantizedLayer) for m in student.modules()) else TOLERANCE


@dataclass(frozen=True)
class Parity:
    """How near a file's outputs are to the student's.

    Attributes:
        relative_error: norm of the difference over the norm.
        max_abs_diff: largest difference.
        agreement: share of samples with the same largest output.
    """

    relative_error: float
    max_abs_diff: float
    agreement: float


def check_parity(student: nn.Module, load: Callable[[Path], Session], file: Path, inputs: Inputs) -> Parity:
    """Compares a file with the student that it was written from.

    Args:
        student: in evaluation mode.
        load: `Runtime.load` of the runtime that wrote the file, or that of a device elsewhere.
        file: of the student.
        inputs: real ones, any number of samples.

    Raises:
        ExportError: the outputs differ beyond the tolerance, or are not finite; names the layer where they part.
    """
    with torch.no_grad():
        outputs = call_model(student, inputs)
    expected, predicted = tensors_in(outputs), load(file).predict(inputs)
    found = tensors_in(predicted)
    if len(found) != len(expected):
        raise ExportError(
            f"the file must give the {len(expected)} tensors that the model gives, but {file.name} gives {len(found)}; "
            "return each of them once, and none of the inputs"
        )
    error = max(_relative_error(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    tolerance = tolerance_of(student)
    if error <= tolerance:
        main = (main_output(item) for item in (restored(outputs, found), outputs))
        ours, theirs = (item.reshape(len(item), -1).argmax(1) for item in main)
        agreement = (ours == theirs).double().mean()
        diff = max(float((a.double() - b.double()).abs().max()) for a, b in zip(found, expected, strict=True))
        return Parity(error, diff, float(agreement))
    place = parting_layer(student, load, file, inputs, tolerance)
    raise ExportError(
        f"the file must give what the model gives, within a relative error of {tolerance:g}, but {file.name} "
        f"differs by {error:.3g} on these inputs; they part at {place}; keep "
        "that layer at 32 bits, or look for values that are not finite there"
    )


def parting_layer(
    student: nn.Module, load: Callable[[Path], Session], file: Path, inputs: Inputs, tolerance: float
) -> str:
    """Name of the first layer whose output differs beyond the tolerance, as far as the file's format tells."""
    if file.suffix != ".onnx":
        return "a layer that this format does not name"
    model = onnx.load(file)
    ends = _layer_ends(student, model)
    wanted = _outputs_of(student, ends, inputs)
    for path, value in ends.items():
        if path not in wanted:
            continue
        expected, rounding = wanted[path]
        found = _run_to(load, model, value, inputs).reshape(expected.shape)
        if _relative_error(found if rounding is None else rounding(found), expected) > tolerance:
            return f"layer {path!r}"
    return "what follows the last layer"


def _relative_error(found: Tensor, expected: Tensor) -> float:
    if not bool(torch.isfinite(found).all() and torch.isfinite(expected).all()):
        return float("inf")
    difference = found.double() - expected.double()
    return float(difference.norm() / expected.double().norm().clamp(min=1e-12))


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


def _outputs_of(
    student: nn.Module, ends: Mapping[str, str], inputs: Inputs
) -> dict[str, tuple[Tensor, nn.Module | None]]:
    """The expected values of the file: outputs of layers, or of the batch norms that were folded into them.

    With each the quantizer that the module ends with, which in the file comes behind the value.
    """
    outputs: dict[str, tuple[Tensor, nn.Module | None]] = {}
    made: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            rounding = getattr(module, "output_quantizer", None)
            if isinstance(module, _BatchNorm) and path not in ends:
                folded = [name for name, value in made.items() if value is args[0]]
                outputs.update({name: (output.clone(), rounding) for name in folded})
            elif path in ends and isinstance(output, Tensor):
                made[path], outputs[path] = output, (output.clone(), rounding)  # what follows may change it in place

        return hook

    modules = student.named_modules()
    handles = [m.register_forward_hook(keep(p)) for p, m in modules if p in ends or isinstance(m, _BatchNorm)]
    try:
        with torch.no_grad():
            call_model(student, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _run_to(load: Callable[[Path], Session], model: onnx.ModelProto, value: str, inputs: Inputs) -> Tensor:
    """The runtime's result for one value of the graph."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))
    with LockedTempDir() as scratch:
        file = scratch.path / "part.onnx"
        onnx.save(part, file)
        value_there: Tensor = load(file).predict(inputs)
        return value_there
