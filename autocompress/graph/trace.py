"""Traces a model with `torch.export` and says which node is which parameter, buffer, input and output."""

from __future__ import annotations

import contextlib
import copy
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind

from autocompress.errors import InputError

ExampleInputs = tuple[Tensor, ...] | dict[str, Tensor]

FRESH = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "matmul", "bmm", "cat", "add", "sub", "mul", "div"}
    | {"batch_norm", "layer_norm", "group_norm", "instance_norm", "relu", "sigmoid", "hardswish", "silu", "hardtanh"}
)
"""Ops that return new memory, and in-place ops that hand on the memory of an argument that is read no more."""

_TORCH_ROOT = str(Path(torch.__file__).parent)


class UntraceableError(Exception):
    """`torch.export` cannot trace the model; the message says which line broke it."""


@dataclass(frozen=True)
class Trace:
    """A model as one flat list of ATen calls.

    Attributes:
        nodes: placeholders, calls and the output node, in execution order.
        states: placeholder -> dotted path of its parameter or buffer; tied tensors all have their first path.
        inputs: placeholders of the example inputs, in order.
        constants: placeholder -> the tensor made while tracing that it stands for.
        outputs: the nodes that the model returns, in order; changed buffers are not among them.
    """

    nodes: tuple[fx.Node, ...]
    states: dict[fx.Node, str]
    inputs: tuple[fx.Node, ...]
    constants: dict[fx.Node, Tensor]
    outputs: tuple[fx.Node, ...]


def split_inputs(example_inputs: Tensor | ExampleInputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword arguments; a bare tensor stands for a tuple of one."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, dict):
        return (), dict(example_inputs)
    return tuple(example_inputs), {}


def share_parameters(model: nn.Module) -> nn.Module:
    """A copy of the model in evaluation mode that shares its parameters (no memory) and owns its buffers.

    Raises:
        InputError: the model cannot be copied.
    """
    memo: dict[int, object] = {id(parameter): parameter for parameter in model.parameters()}
    try:
        return copy.deepcopy(model, memo).eval()
    except (RuntimeError, TypeError) as error:
        raise InputError(f"the model must survive copy.deepcopy, which compression works on, but: {error}") from error


def trace_model(model: nn.Module, example_inputs: Tensor | ExampleInputs) -> Trace:
    """Traces the model, which must be in evaluation mode and is left as it was.

    An in-place op on a fresh value that nothing else reads is as good as the plain op. Other in-place edits are turned
    into plain ops by `run_decompositions({})`, which costs several times the trace, so that it only runs for them.
    No gradients are taken, so that what a user's forward runs without them is not a graph of its own; torch's layers
    must not take the fused way that they have for that.

    Raises:
        UntraceableError: `torch.export` gives up, with the line of the user's code that broke it.
    """
    args, kwargs = split_inputs(example_inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad(), _without_fused_attention():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, args, kwargs, strict=False)
            _unwrap_(program.graph)
            program.graph_module.recompile()
            if any(_edits_shared_memory(node) for node in program.graph.nodes):
                program = program.run_decompositions({})
    except Exception as error:  # torch.export has no base class of its own: anything the model does can end up here
        raise UntraceableError(_blame(error)) from error
    return _read(program, _first_names(model))


@contextlib.contextmanager
def _without_fused_attention() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _unwrap_(graph: fx.Graph) -> None:
    """Puts what the user's forward runs within `autocast(enabled=False)` or `enable_grad()` in line, in place.

    Both are calls of a graph of its own in the trace. No autocast is on around them, so that neither changes a value.
    """
    for wrapped in [node for node in graph.nodes if _is_wrapped(node)]:
        place = next(at for at, item in enumerate(wrapped.args) if isinstance(item, fx.Node) and item.op == "get_attr")
        held: Any = wrapped.args[place]
        inner: fx.Graph = held.graph.owning_module.get_submodule(held.target).graph
        _unwrap_(inner)
        if any(node.op == "get_attr" for node in inner.nodes):  # further graphs, of other kinds
            continue
        starts = [node for node in inner.nodes if node.op == "placeholder"]
        values: dict[fx.Node, Any] = dict(zip(starts, wrapped.args[place + 1 :], strict=True))
        with graph.inserting_before(wrapped):
            results: Any = graph.graph_copy(inner, values)
        for item in list(wrapped.users):  # `operator.getitem`: the graph returns a tuple
            item.replace_all_uses_with(results[item.args[1]])
            graph.erase_node(item)
        graph.erase_node(wrapped)
        if not held.users:
            graph.erase_node(held)


def _is_wrapped(node: fx.Node) -> bool:
    name = getattr(node.target, "__name__", "")
    return name == "wrap_with_set_grad_enabled" or (name == "wrap_with_autocast" and not node.args[2])


def is_in_place(node: fx.Node) -> bool:
    """Whether a node writes into one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _edits_shared_memory(node: fx.Node) -> bool:
    """Whether a node writes into memory that another node may read as something else."""
    if not is_in_place(node) or "dropout" in str(node.target):  # dropout does nothing in evaluation mode
        return False
    target: Any = node.target
    written = [item.alias_info is not None and item.alias_info.is_write for item in target._schema.arguments]
    source = node.args[0] if node.args else None
    only_first = written[0] and not any(written[1:]) and isinstance(source, fx.Node)
    return not (only_first and isinstance(source, fx.Node) and len(source.users) == 1 and _is_fresh(source))


def _is_fresh(node: fx.Node) -> bool:
    """Whether a node's result lies in memory of its own (an op not listed may return a view of its argument)."""
    return node.op == "call_function" and str(node.target).split(".")[1].rstrip("_") in FRESH


def _first_names(model: nn.Module) -> dict[str, str]:
    """Every path of a parameter or buffer -> the first path of the same tensor: tied weights have several."""
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {path: first.setdefault(id(tensor), path) for path, tensor in named}


def _read(program: torch.export.ExportedProgram, first_names: dict[str, str]) -> Trace:
    signature = program.graph_signature
    paths = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = signature.inputs_to_lifted_tensor_constants
    states: dict[fx.Node, str] = {}
    constants: dict[fx.Node, Tensor] = {}
    inputs: list[fx.Node] = []
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        if node.name in paths:
            states[node] = first_names[paths[node.name]]
        elif node.name in lifted:
            constants[node] = program.constants[lifted[node.name]]
        else:
            inputs.append(node)
    returned = zip(next(iter(reversed(program.graph.nodes))).args[0], signature.output_specs, strict=True)
    outputs = tuple(
        item for item, spec in returned if spec.kind is OutputKind.USER_OUTPUT and isinstance(item, fx.Node)
    )
    return Trace(tuple(program.graph.nodes), states, tuple(inputs), constants, outputs)


def _blame(error: Exception) -> str:
    """The last line of the user's own code in the traceback, and the first line of the message."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_TORCH_ROOT, "<"))]
    message = str(error).strip().splitlines() or [""]
    what = f"{type(error).__name__}: {message[0][:200]}"
    user = [f for f in frames if not f.filename.startswith(str(Path(__file__).parent))]
    if not user:
        return f"torch.export cannot trace the model ({what})"
    return f'torch.export cannot trace {Path(user[-1].filename).name}:{user[-1].lineno} "{user[-1].line}" ({what})'


def module_path(node: fx.Node) -> str:
    """Dotted path of the innermost module whose forward made this node; "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]).removeprefix("L['self']").lstrip(".") if stack else ""


def op_name(node: fx.Node) -> str:
    """The name of the op a node calls, as a user would look it up."""
    return str(node.target)
