"""Lists the weight layers of a trace: sizes, work, and what reads each output."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import Tensor, fx, nn

from autocompress.graph.clamps import relu_ceiling
from autocompress.graph.flow import rule_key
from autocompress.graph.groups import owner
from autocompress.graph.model_graph import Frozen, Layer
from autocompress.graph.moving import commutes
from autocompress.graph.own_forward import is_computed, is_disguised, why_not
from autocompress.graph.trace import Trace, module_path

KINDS: dict[str, tuple[type[nn.Module], str]] = {
    "aten.linear": (nn.Linear, "linear"),
    "aten.conv1d": (nn.Conv1d, "conv1d"),
    "aten.conv2d": (nn.Conv2d, "conv2d"),
    "aten.conv3d": (nn.Conv3d, "conv3d"),
    "aten.embedding": (nn.Embedding, "embedding"),
    "aten.lstm": (nn.LSTM, "lstm"),
    "aten.gru": (nn.GRU, "gru"),
}
"""Op that a torch layer calls -> its class, and the kind that a user reads."""

HIDDEN_WEIGHT = "weight_hh_l0"
"""The weight that stands for a recurrent layer's size."""

NORMS = frozenset({"aten.batch_norm", "aten._native_batch_norm_legit_no_training"})


def find_layers(model: nn.Module, trace: Trace) -> tuple[tuple[Layer, ...], tuple[Frozen, ...]]:
    """Layers called exactly once, in network order; those that are not, and weights in no layer, with the reason."""
    calls = _calls(model, trace)
    owners = _owners(model)
    fed = _fed(model, trace)
    unique: dict[fx.Node, str] = {}
    frozen: list[Frozen] = []
    for path, nodes in calls.items():
        reason = _why_frozen(model.get_submodule(path), path, nodes, owners, trace)
        if reason is None and nodes[0] not in fed:
            reason = "its input is always the same, so that its output is a constant"
        if reason is None:
            unique[nodes[0]] = path
        else:
            frozen.append(Frozen(path, "layer", reason))
    batch = _batch_size(trace)
    layers = [_layer(model, trace, node, unique, batch) for node in unique]
    return tuple(layers), (*frozen, *_outside(model, trace, calls.keys(), owners))


def _why_frozen(
    module: nn.Module, path: str, nodes: list[fx.Node], owners: dict[int, list[str]], trace: Trace
) -> str | None:
    weights = weight_tensors(module)
    others = [other for name, weight in weights.items() for other in owners[id(weight)] if other != f"{path}.{name}"]
    if others:
        return f"its weight is shared with {', '.join(others)}"
    if len(nodes) > 1:
        return f"it is called {len(nodes)} times"
    (node,) = nodes
    kind = KINDS[rule_key(node)][0]
    if is_plain(module, kind) and weights and all(_readers_of(trace, f"{path}.{name}") == nodes for name in weights):
        return None
    if is_disguised(module, kind):
        return why_not(path, node, trace)
    return "its weight is also used outside the layer, or is computed"


def _outside(model: nn.Module, trace: Trace, listed: Collection[str], owners: dict[int, list[str]]) -> Iterator[Frozen]:
    """One line for all weights of one name in modules of one kind that are no listed layers, at the first of them."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[tuple[type[nn.Module], str], list[str]] = defaultdict(list)
    for node, path in trace.states.items():
        weight = parameters.get(path)
        known = weight is not None and any(owner(name) in listed for name in owners[id(weight)])
        if weight is not None and weight.dim() > 1 and not known and node.users:
            module = model.get_submodule(owner(path) if "." in path else "")
            found[type(module), path.rpartition(".")[2]].append(path)
    for (kind, _), paths in found.items():
        more = f" (so in {len(paths) - 1} more places)" if len(paths) > 1 else ""
        reason = f"ranks and bits are not offered for parameters of {kind.__name__}{more}"
        yield Frozen(paths[0], "layer", reason, len(paths))


def _calls(model: nn.Module, trace: Trace) -> dict[str, list[fx.Node]]:
    """Path of each layer of a kind in `KINDS` -> the nodes that its forward made."""
    calls: dict[str, list[fx.Node]] = defaultdict(list)
    for node in trace.nodes:
        kind = KINDS.get(rule_key(node))
        if kind is None:
            continue
        path = module_path(node)
        module = model.get_submodule(path)
        if is_plain(module, kind[0]) or is_disguised(module, kind[0]):
            calls[path].append(node)
    return calls


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes exactly what this torch layer does; a subclass with a forward of its own does not."""
    same = type(module).forward is kind.forward
    return same and getattr(type(module), "_conv_forward", None) is getattr(kind, "_conv_forward", None)


def weight_tensors(module: nn.Module) -> dict[str, nn.Parameter]:
    """A layer's own weights by name: several in a recurrent layer, none where the weight is computed."""
    return {name: tensor for name, tensor in module.named_parameters(recurse=False) if tensor.dim() > 1}


def weight_shape(module: nn.Module) -> tuple[int, ...]:
    """The shape by which a layer is known: its weight's, or a recurrent layer's first hidden-to-hidden weight's."""
    weight: Any = getattr(module, HIDDEN_WEIGHT if isinstance(module, nn.RNNBase) else "weight")
    return tuple(weight.shape)


def geometry(module: nn.Module) -> dict[str, Any]:
    """The fields `groups`, `stride` and `input_shapes` of a layer."""
    if isinstance(module, nn.RNNBase):
        n_directions = 2 if module.bidirectional else 1
        first = [getattr(module, f"weight_ih_l{level}").shape for level in range(module.num_layers)]
        return {"input_shapes": tuple((n_directions * n_rows, n_inputs) for n_rows, n_inputs in first)}
    if isinstance(module, nn.modules.conv._ConvNd):
        return {"groups": module.groups, "stride": tuple(module.stride)}
    return {}


def _readers_of(trace: Trace, tensor: str) -> list[fx.Node]:
    return [user for node, name in trace.states.items() if name == tensor for user in node.users]


def _fed(model: nn.Module, trace: Trace) -> set[fx.Node]:
    """Nodes whose value comes from an input or a buffer; an exported file holds the results of the others."""
    buffers = {name for name, _ in model.named_buffers()}
    fed = {*trace.inputs, *(node for node, name in trace.states.items() if name in buffers)}
    for node in trace.nodes:
        if any(source in fed for source in node.all_input_nodes):
            fed.add(node)
    return fed


def _owners(model: nn.Module) -> dict[int, list[str]]:
    owners: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)].append(name)
    return owners


def _batch_size(trace: Trace) -> int:
    """Size of the first dimension of the first example input that has one."""
    sizes = (node.meta["val"].shape for node in trace.inputs if isinstance(node.meta.get("val"), Tensor))
    return max(1, next((int(shape[0]) for shape in sizes if len(shape)), 1))


def _layer(model: nn.Module, trace: Trace, node: fx.Node, unique: dict[fx.Node, str], batch: int) -> Layer:
    path = unique[node]
    module = model.get_submodule(path)
    end, norm, relu, ceiling = unit_end(node, trace)
    feeds, only_layers = _readers(end, unique)
    kind = KINDS[rule_key(node)]
    computed = not isinstance(module, nn.RNNBase) and is_computed(node, trace)
    return Layer(
        path=path,
        kind=kind[1],
        weight_shape=weight_shape(module),
        n_params=sum(parameter.numel() for parameter in module.parameters(recurse=False)),
        n_macs=_n_macs(node) // batch,
        norm=norm,
        relu=relu,
        ceiling=ceiling,
        own_forward=computed or not is_plain(module, kind[0]),
        computed_weight=computed,
        feeds=tuple(feeds),
        feeds_only_layers=only_layers,
        **geometry(module),
    )


def users_of(node: fx.Node) -> list[fx.Node]:
    """The nodes that read a value, without those that only check it."""
    return [user for user in node.users if rule_key(user) != "aten._assert_tensor_metadata"]


def unit_end(node: fx.Node, trace: Trace) -> tuple[fx.Node, str | None, bool, float | None]:
    """The last node of a layer -> batch norm -> ReLU unit, the norm's path, whether there is a ReLU, its ceiling."""
    norm = None
    users = users_of(node)
    if len(users) == 1 and rule_key(users[0]) in NORMS and users[0].args[0] is node:
        norm = _norm_path(users[0], trace)
    end = node
    if norm is not None:
        end = users[0]
        if isinstance(end.meta.get("val"), (tuple, list)):
            end = next(iter(end.users))
        users = users_of(end)
    relu, ceiling = relu_ceiling(users[0]) if len(users) == 1 else (False, None)
    return (users[0] if relu else end), norm, relu, ceiling


def _norm_path(node: fx.Node, trace: Trace) -> str | None:
    """Path of a batch norm with running statistics that is called once."""
    mean = next((item for item in node.all_input_nodes if trace.states.get(item, "").endswith(".running_mean")), None)
    return trace.states[mean].removesuffix(".running_mean") if mean is not None and len(mean.users) == 1 else None


def _readers(end: fx.Node, unique: dict[fx.Node, str]) -> tuple[list[str], bool]:
    """Layers that read a value, also through commuting ops, and whether nothing else does."""
    feeds: list[str] = []
    only_layers = True
    waiting = users_of(end)
    while waiting:
        user = waiting.pop(0)
        if user in unique:
            feeds.append(unique[user])
        elif commutes(user):
            waiting.extend(users_of(user))
        else:
            only_layers = False
    return feeds, only_layers and bool(feeds)


def count_macs(trace: Trace) -> int:
    """Multiply-accumulates of convolutions, linear layers, matrix products, attention and LSTM/GRU, for one sample."""
    return sum(_n_macs(node) for node in trace.nodes) // _batch_size(trace)


def _n_macs(node: fx.Node) -> int:
    counter = MACS.get(rule_key(node))
    return counter(node) if counter is not None else 0


def _size(node: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta["val"].shape)


def _dense(node: fx.Node) -> int:
    return math.prod(_size(node)) * math.prod(_size(node.args[1])[1:])


def _transposed(node: fx.Node) -> int:
    return math.prod(_size(node.args[0])) * math.prod(_size(node.args[1])[1:])


def _product(node: fx.Node) -> int:
    return math.prod(_size(node)) * _size(node.args[0])[-1]


def _addmm(node: fx.Node) -> int:
    return math.prod(_size(node)) * _size(node.args[1])[-1]


def _attention(node: fx.Node) -> int:
    query, key, value = (_size(node.args[place]) for place in range(3))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(node: fx.Node) -> int:
    source, weights = _size(node.args[0]), node.all_input_nodes
    steps = source[0] * source[1]
    return sum(steps * math.prod(_size(item)) for item in weights if len(_size(item)) == 2 and item.op == "placeholder")


MACS: dict[str, Callable[[fx.Node], int]] = {
    **dict.fromkeys(("aten.linear", "aten.conv1d", "aten.conv2d", "aten.conv3d"), _dense),
    **dict.fromkeys(("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d"), _transposed),
    **dict.fromkeys(("aten.matmul", "aten.bmm", "aten.mm"), _product),
    **dict.fromkeys(("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu"), _recurrent),
    "aten.addmm": _addmm,
    "aten.scaled_dot_product_attention": _attention,
}
