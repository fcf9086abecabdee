"""Writes a PyTorch model as one safetensors file, its ATen calls as JSON in the header, and reads it without pickle."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from autocompress.devices import tensors_in
from autocompress.errors import ExportError
from autocompress.runtimes.divergence import caller_of, failing_place
from autocompress.task import Inputs

_HEADER = "autocompress_graph"
_OP = re.compile(r"aten\.([a-z_0-9]+)\.([A-Za-z_0-9]+)")
_REFUSED = {"from_file"}  # reads other files
_GETITEM = "getitem"
_CONSTANTS: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}


def write_aten(student: nn.Module, example_inputs: Inputs, file: Path) -> None:
    """Traces the model in evaluation mode at the shapes of `example_inputs` and writes it.

    Raises:
        ExportError: the model cannot be traced, or calls an op that is not ATen's; names it and its module.
    """
    args, kwargs = ((), example_inputs) if isinstance(example_inputs, dict) else (example_inputs, {})
    was_training = student.training
    student.eval()
    try:
        with torch.no_grad():
            program = torch.export.export(student, args, kwargs)
    except Exception as error:
        place = failing_place(error, student)
        raise ExportError(f"{place} cannot be traced by torch.export: {str(error)[:500]}") from error
    finally:
        student.train(was_training)
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors = {**program.state_dict, **program.constants}
    states = {key: tensors[name].detach().contiguous().clone() for key, name in names.items()}
    given = [node.name for node in program.graph.nodes if node.op == "placeholder" and node.name not in names]
    inputs = dict(zip(given, tensors_in(example_inputs), strict=True))
    flat = isinstance(example_inputs, dict) and len(example_inputs) == len(given)
    keys = list(example_inputs) if flat else given
    n_changed = len(signature.buffers_to_mutate)
    outputs = [
        node for node in next(iter(reversed(program.graph.nodes))).args[0][n_changed:] if isinstance(node, fx.Node)
    ]
    graph = {
        "inputs": [
            {"name": key, "node": node, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
            for key, (node, value) in zip(keys, inputs.items(), strict=True)
        ],
        "calls": [_encode_call(node) for node in program.graph.nodes if node.op == "call_function"],
        "output": _encode(outputs[0] if len(outputs) == 1 else outputs),
    }
    save_file(states, file, {_HEADER: json.dumps(graph)})


def read_aten(file: Path, device: str) -> tuple[fx.GraphModule, list[dict[str, Any]]]:
    """The model as a graph of ATen calls on a device, and the description of its inputs: name, shape, dtype.

    Raises:
        ExportError: the file is damaged, or calls anything but ATen ops.
    """
    try:
        with safe_open(file, "pt", device=device) as content:
            description = json.loads((content.metadata() or {})[_HEADER])
            states = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a mapping
        return _build(description, states, device), description["inputs"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ExportError(f"{file} must be a file that the torch runtime wrote, but: {error}") from error


def _build(description: Mapping[str, Any], states: Mapping[str, Tensor], device: str) -> fx.GraphModule:
    root, graph, nodes = nn.Module(), fx.Graph(), {}
    for item in description["inputs"]:
        nodes[item["node"]] = graph.placeholder(item["node"])
    for name, value in states.items():
        root.register_buffer(name, value)
        nodes[name] = graph.get_attr(name)
    for call in description["calls"]:
        args, kwargs = (_decode(call[key], nodes, device) for key in ("args", "kwargs"))
        nodes[call["name"]] = graph.call_function(_op_named(call["op"]), args, kwargs)
    graph.output(_decode(description["output"], nodes, device))
    graph.lint()
    return fx.GraphModule(root, graph)


def _encode_call(node: fx.Node) -> dict[str, Any]:
    op = _GETITEM if node.target is operator.getitem else str(node.target)
    match = _OP.fullmatch(op)
    if op != _GETITEM and (match is None or match[1] in _REFUSED):
        raise ExportError(
            f"the torch runtime writes ATen ops, but module {caller_of(node)!r} calls {op}; "
            "express it in ops of torch.nn.functional"
        )
    return {"name": node.name, "op": op, "args": _encode(node.args), "kwargs": _encode(node.kwargs)}


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, Mapping):
        return {"dict": {str(key): _encode(item) for key, item in value.items()}}
    if isinstance(value, torch.device):
        return {"device": None}
    for name, kind in _CONSTANTS.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    if isinstance(value, float):
        return {"float": repr(value)}  # JSON has no infinities
    if value is None or isinstance(value, bool | int | str):
        return value
    raise ExportError(f"the torch runtime writes fixed shapes and plain arguments, but got {value!r}")


def _decode(value: Any, nodes: Mapping[str, fx.Node], device: str) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, nodes, device) for item in value)
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "dict":
        return {key: _decode(item, nodes, device) for key, item in content.items()}
    if kind == "device":
        return torch.device(device)
    if kind == "float":
        return float(content)
    constant = getattr(torch, content)
    if not isinstance(constant, _CONSTANTS[kind]):
        raise TypeError(f"{content!r} is no {kind}")
    return constant


def _op_named(name: str) -> Callable[..., Any]:
    if name == _GETITEM:
        return operator.getitem
    match = _OP.fullmatch(name)
    if match is None or match[1] in _REFUSED:
        raise ValueError(f"{name!r} is no ATen op that may be called")
    op: Callable[..., Any] = getattr(getattr(torch.ops.aten, match[1]), match[2])
    return op
