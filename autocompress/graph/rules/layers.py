"""Rules of ops with weights (convolutions, linear, norms, embedding, LSTM, GRU, RNN) and of fused attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from autocompress.graph.flow import ALONG, CONSUMER, PRODUCER, Flow, Rule, argument, axis, has_argument, shape_of
from autocompress.graph.labels import Dim, Dims, Fixed, NoRuleError, Slots
from autocompress.graph.rules.elementwise import broadcast


def linear(node: fx.Node, flow: Flow) -> Dims:
    """`x @ weight.T + bias`: reads the last dimension, makes the weight's rows."""
    weight, bias = argument(node, "weight"), argument(node, "bias")
    dims, table = flow.dims(argument(node, "input")), flow.dims(weight)
    flow.labels.tie(dims[-1], table[1])
    flow.play(weight, 0, PRODUCER)
    flow.play(weight, 1, CONSUMER)
    _bias(bias, table[0], flow)
    return (*dims[:-1], table[0])


def _bias(bias: Any, channels: Dim, flow: Flow, role: str = PRODUCER) -> None:
    if bias is not None:
        flow.labels.tie(channels, flow.dims(bias)[0])
        flow.play(bias, 0, role)


def conv(node: fx.Node, flow: Flow) -> Dims:
    """A convolution, plain or transposed, of any rank; groups keep their number, depthwise groups go one by one."""
    weight = argument(node, "weight")
    source = argument(node, "input")
    dims, table, groups = flow.dims(source), flow.dims(weight), argument(node, "groups")
    name = str(node.target)
    transposed = "transpose" in name or (has_argument(node, "transposed") and bool(argument(node, "transposed")))
    rank = len(table) - 2
    place = len(dims) - rank - 1
    for dim in dims[place + 1 :]:
        flow.labels.freeze(dim, "is mixed along the spatial dimensions of a convolution")
    made, read = _conv_channels(weight, groups, transposed, flow)
    flow.labels.tie(dims[place], read)
    depthwise = _is_depthwise(shape_of(weight), groups, transposed)
    _bias(argument(node, "bias"), made, flow, ALONG if depthwise else PRODUCER)
    space = Fixed("meets a spatial dimension")
    return (*dims[:place], made, *(space for _ in range(rank)))


def _is_depthwise(shape: tuple[int, ...], groups: int, transposed: bool) -> bool:
    """One input channel for each group; transposed, also one output channel."""
    return groups > 1 and shape[1] == 1 and (not transposed or shape[0] == groups)


def _conv_channels(weight: Any, groups: int, transposed: bool, flow: Flow) -> tuple[Dim, Dim]:
    """Labels of the channels made and of the channels read, in the order of the data."""
    table, shape = flow.dims(weight), shape_of(weight)
    if groups == 1:
        made, read = (1, 0) if transposed else (0, 1)
        flow.play(weight, made, PRODUCER)
        flow.play(weight, read, CONSUMER)
        return table[made], table[read]
    rows, columns = table[0], table[1]
    if isinstance(rows, Fixed):
        raise NoRuleError("the weight of a grouped convolution is fixed")
    by_group = rows.reshape(groups, -1)
    if _is_depthwise(shape, groups, transposed):
        # depthwise: the outputs of a group (several with a channel multiplier) follow its only input
        flow.labels.tie_rows(by_group.T)
        flow.play(weight, 0, ALONG)
        return rows, by_group[:, 0]
    if isinstance(columns, Fixed):
        raise NoRuleError("the weight of a grouped convolution is fixed")
    # every group must keep as many channels as the others: position j of all groups is one channel
    flow.labels.tie_rows(by_group)
    repeated = np.tile(columns, groups)
    flow.play(weight, 0, CONSUMER if transposed else PRODUCER)
    flow.play(weight, 1, PRODUCER if transposed else CONSUMER)
    return (repeated, rows) if transposed else (rows, repeated)


def batch_norm(node: fx.Node, flow: Flow) -> Dims | list[Dims]:
    """Statistics and affine parameters by channel, in dimension 1."""
    dims = _channelwise(node, ("weight", "bias", "running_mean", "running_var"), flow)
    return [dims, (), ()] if isinstance(node.meta.get("val"), (tuple, list)) else dims


def instance_norm(node: fx.Node, flow: Flow) -> Dims:
    """As batch norm; statistics are those of each sample."""
    return _channelwise(node, ("weight", "bias", "running_mean", "running_var"), flow)


def _channelwise(node: fx.Node, names: tuple[str, ...], flow: Flow) -> Dims:
    dims = flow.dims(argument(node, "input"))
    for name in names:
        state = argument(node, name)
        if state is not None:
            flow.labels.tie(dims[1], flow.dims(state)[0])
            flow.play(state, 0, ALONG)
    return dims


def group_norm(node: fx.Node, flow: Flow) -> Dims:
    """The number of groups stays: position j of all groups is one channel."""
    dims = _channelwise(node, ("weight", "bias"), flow)
    groups = argument(node, "num_groups") if has_argument(node, "num_groups") else argument(node, "group")
    if not isinstance(dims[1], Fixed):
        flow.labels.tie_rows(dims[1].reshape(groups, -1))
    return dims


def layer_norm(node: fx.Node, flow: Flow) -> Dims:
    """Also RMS norm: normalises the trailing dimensions over the channels that are left."""
    dims = flow.dims(argument(node, "input"))
    for name in ("weight", "bias"):
        state = argument(node, name) if has_argument(node, name) else None
        if state is None:
            continue
        for place, labels in enumerate(flow.dims(state)):
            flow.labels.tie(dims[len(dims) - len(flow.dims(state)) + place], labels)
            flow.play(state, place, ALONG)
    return dims


def embedding(node: fx.Node, flow: Flow) -> Dims:
    """Rows of a table; the number of rows is fixed by the indices."""
    weight = argument(node, "weight")
    table = flow.dims(weight)
    flow.labels.freeze(table[0], "is looked up by index")
    flow.play(weight, 1, PRODUCER)
    return (*flow.dims(argument(node, "indices")), table[1])


def weight_norm(node: fx.Node, flow: Flow) -> Dims:
    """`g * v / |v|`, the norm taken over all dimensions but one, in which the lengths `g` lie."""
    direction, length, place = node.args[0], node.args[1], argument(node, "dim")
    dims = flow.dims(direction)
    flow.labels.tie(dims[place], flow.dims(length)[place])
    flow.play(length, place, ALONG)
    if isinstance(direction, fx.Node):
        flow.computed[node] = direction
    return dims


def addmm(node: fx.Node, flow: Flow) -> Dims:
    """`bias + x @ weight`, as transformers' Conv1D."""
    weight, bias = argument(node, "mat2"), argument(node, "self")
    dims, table = flow.dims(argument(node, "mat1")), flow.dims(weight)
    flow.labels.tie(dims[axis(-1, 2)], table[0])
    flow.play(weight, 0, CONSUMER)
    flow.play(weight, 1, PRODUCER)
    if len(flow.dims(bias)) != 1:
        raise NoRuleError("a bias that is no vector")
    _bias(bias, table[1], flow)
    return (dims[0], table[1])


CONVS = "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d"

LAYERS = {f"aten.{name}": conv for name in CONVS.split()} | {
    "aten.linear": linear,
    "aten._weight_norm": weight_norm,
    "aten.addmm": addmm,
    "aten.batch_norm": batch_norm,
    "aten._native_batch_norm_legit_no_training": batch_norm,
    "aten.instance_norm": instance_norm,
    "aten.group_norm": group_norm,
    "aten.layer_norm": layer_norm,
    "aten.rms_norm": layer_norm,
    "aten.embedding": embedding,
}


States = tuple[Slots, Slots]
"""Labels of what a cell gives out at each step, and of its hidden units: the same, unless the LSTM projects them."""


def recurrent(gates: int) -> Rule:
    """A rule for cells whose weights stack `gates` blocks of rows; torch keeps one size for all layers."""

    def rule(node: fx.Node, flow: Flow) -> list[Dims]:
        params: list[Any] = list(argument(node, "params"))
        directions = 2 if argument(node, "bidirectional") else 1
        per_cell, left_over = divmod(len(params), argument(node, "num_layers") * directions)
        plain = 4 if argument(node, "has_biases") else 2
        if left_over or per_cell not in (plain, plain + 1):
            raise NoRuleError("packed weights")
        source = flow.dims(argument(node, "input"))
        states: States | None = None
        for start in range(0, len(params), per_cell):
            cell = params[start : start + per_cell]
            layer = start // per_cell // directions
            reads: Dim = source[-1] if layer == 0 or states is None else np.tile(states[0], directions)
            own = _cell(cell[:plain], cell[plain:], reads, gates, flow)
            for mine, common in zip(own, own if states is None else states, strict=True):
                flow.labels.tie(mine, common)
            states = own if states is None else states
        if states is None:
            raise NoRuleError("there are no weights")
        given = argument(node, "hx")
        for state, units in zip(given if isinstance(given, (list, tuple)) else [given], states, strict=False):
            flow.labels.tie(units, flow.dims(state)[-1])
        outer = source[:-1]
        batch = outer[0] if argument(node, "batch_first") else outer[-1]
        n_states = len(node.meta["val"]) - 1
        counted = Fixed("counts the layers of a recurrent net")
        return [(*outer, np.tile(states[0], directions)), *((counted, batch, units) for units in states[:n_states])]

    return rule


def _cell(cell: list[Any], projection: list[Any], reads: Dim, gates: int, flow: Flow) -> States:
    """Ties the tensors of one layer and direction; the labels of what it gives out and of its hidden units."""
    inner, outer = flow.dims(cell[0]), flow.dims(cell[1])
    flow.labels.tie(reads, inner[1])
    flow.play(cell[0], 1, CONSUMER)
    flow.play(cell[1], 1, CONSUMER)
    given = _labels(outer[1])
    units = _labels(outer[0]).reshape(gates, -1)[0]
    for tensor in cell:
        flow.labels.tie_rows(np.concatenate([units.reshape(1, -1), _labels(flow.dims(tensor)[0]).reshape(gates, -1)]))
        flow.play(tensor, 0, PRODUCER)
    if not projection:
        flow.labels.tie(given, units)
        return given, given
    made, read = flow.dims(projection[0])
    flow.labels.tie(given, made)
    flow.labels.tie(units, read)
    flow.play(projection[0], 0, PRODUCER)
    flow.play(projection[0], 1, CONSUMER)
    # torch takes equal sizes of both for a cell without projection; as unit j goes with projected unit j, and one of
    # the further units always stays, there are always more units
    flow.labels.tie(units[: len(given)], given)
    return given, units


def _labels(dim: Dim) -> Slots:
    if isinstance(dim, Fixed):
        raise NoRuleError("a weight is fixed")
    return dim


RECURRENT: dict[str, Rule] = {
    "aten.lstm": recurrent(4),
    "aten.gru": recurrent(3),
    "aten.rnn_tanh": recurrent(1),
    "aten.rnn_relu": recurrent(1),
}


def attention(node: fx.Node, flow: Flow) -> Dims:
    """`softmax(q k^T scale + mask) v`, shapes `(..., heads, length, size)`.

    The size of queries and keys is fixed unless the scale is given, because the default scale follows from it.
    """
    q, k, v = (flow.dims(argument(node, name)) for name in ("query", "key", "value"))
    shape = shape_of(node)
    if argument(node, "scale") is None:
        for dim in (q[-1], k[-1]):
            flow.labels.freeze(dim, "is the size of an attention head, which scales the scores")
    flow.labels.tie(q[-1], k[-1])
    flow.labels.tie(k[-2], v[-2])
    if len(q) > 2:
        flow.heads += [q[-3], k[-3], v[-3]]
        times = shape[-3] // shape_of(argument(node, "key"))[-3]
        k, v = (_repeat_heads(dims, times) for dims in (k, v))
    batch = shape[:-2]
    operands = [(dims[:-2], batch) for dims in (q, k, v)]
    mask = argument(node, "attn_mask")
    if mask is not None:
        scores = (*batch, shape[-2], shape_of(argument(node, "key"))[-2])
        broadcast([((*q[:-1], k[-2]), scores), (flow.dims(mask), shape_of(mask))], scores, flow)
    return (*broadcast(operands, batch, flow), q[-2], v[-1])


def _repeat_heads(dims: Dims, times: int) -> Dims:
    heads: Dim = dims[-3]
    return dims if isinstance(heads, Fixed) else (*dims[:-3], np.repeat(heads, times), *dims[-2:])


ATTENTION: dict[str, Rule] = {"aten.scaled_dot_product_attention": attention}
