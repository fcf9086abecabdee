"""Finds the ops without weights that engines compute on integers: sums, products, joins, poolings, activations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, fx, nn

from autocompress.graph.branches import Region, is_sum
from autocompress.graph.clamps import relu_ceiling
from autocompress.graph.flow import rule_key
from autocompress.graph.layers import KINDS, unit_end, users_of
from autocompress.graph.model_graph import IntegerOp, Layer
from autocompress.graph.moving import moves
from autocompress.graph.trace import Trace, module_path


def _is_product(node: fx.Node) -> bool:
    operands = node.all_input_nodes
    return len(operands) == 2 and all(isinstance(item.meta.get("val"), Tensor) for item in operands)


def _is_spatial_mean(node: fx.Node) -> bool:
    """The mean over both spatial dimensions of images."""
    value = node.all_input_nodes[0].meta.get("val")
    dims = node.args[1] if len(node.args) > 1 else None
    if not isinstance(value, Tensor) or value.dim() != 4 or not isinstance(dims, list | tuple):
        return False
    return sorted(dim % 4 for dim in dims if isinstance(dim, int)) == [2, 3]


def _always(_node: fx.Node) -> bool:
    return True


_KINDS: dict[str, tuple[str, Callable[[fx.Node], bool]]] = {
    "aten.add": ("add", is_sum),
    "aten.mul": ("mul", _is_product),
    "aten.cat": ("concat", _always),
    "aten.avg_pool2d": ("pool", _always),
    "aten.adaptive_avg_pool2d": ("pool", _always),
    "aten.mean": ("pool", _is_spatial_mean),
    "aten.sigmoid": ("sigmoid", _always),
    "aten.leaky_relu": ("leaky_relu", _always),
    "aten.silu": ("silu", _always),
}
"""Op -> its kind, and what must hold for a node of it."""


def find_integer_ops(
    model: nn.Module, trace: Trace, regions: Mapping[str, Region], layers: Iterable[Layer]
) -> tuple[IntegerOp, ...]:
    """The ops, in network order.

    Args:
        model: that was traced.
        trace: of the model.
        regions: the nodes of every call of every module.
        layers: the model's layers.
    """
    paths = {layer.path for layer in layers}
    layer_nodes = {node: module_path(node) for node in trace.nodes if rule_key(node) in KINDS}
    layer_nodes = {node: path for node, path in layer_nodes.items() if path in paths}
    ends = {unit_end(node, trace)[0]: path for node, path in layer_nodes.items()}
    ops = {node: _KINDS[rule_key(node)][0] for node in trace.nodes if _is_op(node)}
    ends |= {_end(node): node.name for node in ops}
    makers = _makers(trace, ends)
    sites = _sites(model, regions)
    return tuple(_op(node, kind, makers, sites, layer_nodes, ops) for node, kind in ops.items())


def _is_op(node: fx.Node) -> bool:
    kind = _KINDS.get(rule_key(node))
    return kind is not None and kind[1](node)


def _end(node: fx.Node) -> fx.Node:
    """The op, or the ReLU that alone reads it."""
    users = users_of(node)
    return users[0] if len(users) == 1 and relu_ceiling(users[0])[0] else node


def _makers(trace: Trace, ends: Mapping[fx.Node, str]) -> dict[fx.Node, str]:
    """Value -> the layer or op that made it, as far as it was only moved since."""
    makers: dict[fx.Node, str] = {}
    for node in trace.nodes:
        if node in ends:
            makers[node] = ends[node]
        elif moves(node) and node.all_input_nodes and node.all_input_nodes[0] in makers:
            makers[node] = makers[node.all_input_nodes[0]]
    return makers


def _sites(model: nn.Module, regions: Mapping[str, Region]) -> dict[fx.Node, str]:
    """Value -> path of the innermost module that gives it and nothing else, and is called once."""
    n_calls = Counter(region.path for region in regions.values())
    sites: dict[fx.Node, str] = {}
    for region in sorted(regions.values(), key=lambda region: len(region.path)):
        if region.path and n_calls[region.path] == 1 and len(region.outputs) == 1:
            sites[region.outputs[0]] = region.path
    return {node: path for node, path in sites.items() if not _has_weights(model.get_submodule(path))}


def _has_weights(module: nn.Module) -> bool:
    """Whether a module is a layer or a norm itself."""
    return any(True for _ in module.parameters(recurse=False))


def _op(
    node: fx.Node,
    kind: str,
    makers: Mapping[fx.Node, str],
    sites: Mapping[fx.Node, str],
    layer_nodes: Mapping[fx.Node, str],
    ops: Mapping[fx.Node, str],
) -> IntegerOp:
    end = _end(node)
    readers = _readers(end)
    feeds = [layer_nodes[reader] for reader in readers if reader in layer_nodes]
    relu, ceiling = relu_ceiling(end) if end is not node else (False, None)
    own_site = sites.get(node, "") if kind == "silu" else ""
    return IntegerOp(
        name=node.name,
        kind=kind,
        module=module_path(node),
        sources=tuple(makers.get(item, "") for item in _operands(node)),
        feeds=tuple(feeds),
        feeds_others=any(reader not in layer_nodes and reader not in ops for reader in readers),
        site=own_site if kind == "silu" else _site(node, end, sites),
        relu=relu,
        ceiling=ceiling,
    )


def _operands(node: fx.Node) -> list[fx.Node]:
    return list(node.all_input_nodes)


def _readers(end: fx.Node) -> list[fx.Node]:
    """The nodes that read a value, also once it was moved."""
    readers: list[fx.Node] = []
    waiting = users_of(end)
    while waiting:
        user = waiting.pop(0)
        if moves(user):
            waiting.extend(users_of(user))
        else:
            readers.append(user)
    return list(dict.fromkeys(readers))


def _site(node: fx.Node, end: fx.Node, sites: Mapping[fx.Node, str]) -> str:
    """The first module on the way from an op to its readers that gives the value, perhaps moved."""
    way = list(dict.fromkeys([node, end]))
    while len(users_of(way[-1])) == 1 and moves(users_of(way[-1])[0]):
        way.append(users_of(way[-1])[0])
    return next((sites[item] for item in way if item in sites), "")
