"""Rules of ops that move, join, cut or repeat dimensions without mixing their slots."""

from __future__ import annotations

import numpy as np
from torch import fx

from autocompress.graph.flow import Flow, Rule, argument, axis, has_argument, shape_of
from autocompress.graph.labels import Dim, Dims, Fixed, NoRuleError, Slots


def permute(node: fx.Node, flow: Flow) -> Dims:
    """Dimensions in a new order."""
    dims = flow.dims(node.args[0])
    return tuple(dims[axis(place, len(dims))] for place in argument(node, "dims"))


def transpose(node: fx.Node, flow: Flow) -> Dims:
    """Two dimensions change places; `t` those of a matrix."""
    dims = list(flow.dims(node.args[0]))
    if len(dims) < 2:
        return tuple(dims)
    names = next((pair for pair in (("dim0", "dim1"), ("axis0", "axis1")) if has_argument(node, pair[0])), None)
    first, second = (argument(node, names[0]), argument(node, names[1])) if names is not None else (-1, -2)
    dims[first], dims[second] = dims[second], dims[first]
    return tuple(dims)


def reverse(node: fx.Node, flow: Flow) -> Dims:
    """All dimensions in the opposite order, as by `x.T`."""
    return flow.dims(node.args[0])[::-1]


def movedim(node: fx.Node, flow: Flow) -> Dims:
    """One dimension moves to another place."""
    dims = list(flow.dims(node.args[0]))
    source, target = argument(node, "source"), argument(node, "destination")
    if not (isinstance(source, int) and isinstance(target, int)):
        raise NoRuleError("several dimensions move")
    moved = dims.pop(axis(source, len(dims)))
    dims.insert(axis(target, len(dims) + 1), moved)
    return tuple(dims)


def unsqueeze(node: fx.Node, flow: Flow) -> Dims:
    """A new dimension of size 1."""
    dims = list(flow.dims(node.args[0]))
    dims.insert(axis(argument(node, "dim"), len(dims) + 1), Fixed("meets a broadcast dimension"))
    return tuple(dims)


def squeeze(node: fx.Node, flow: Flow) -> Dims:
    """Dimensions of size 1 go."""
    source = node.args[0]
    dims, sizes = flow.dims(source), shape_of(source)
    given = argument(node, "dim") if has_argument(node, "dim") else list(range(len(dims)))
    chosen = {axis(item, len(dims)) for item in (given if isinstance(given, (list, tuple)) else [given])}
    return tuple(dim for place, dim in enumerate(dims) if not (place in chosen and sizes[place] == 1))


def expand(node: fx.Node, flow: Flow) -> Dims:
    """Dimensions of size 1 are repeated; the copies are equal, so that any of them can go."""
    source = node.args[0]
    dims, sizes, shape = flow.dims(source), shape_of(source), shape_of(node)
    new = len(shape) - len(sizes)
    result: list[Dim] = []
    for place, size in enumerate(shape):
        kept = place >= new and sizes[place - new] == size
        result.append(dims[place - new] if kept else flow.labels.fresh(size, uniform=True))
    return tuple(result)


def repeat(node: fx.Node, flow: Flow) -> Dims:
    """Dimensions are tiled: all copies of a slot go together."""
    dims, times = flow.dims(node.args[0]), argument(node, "repeats")
    new = len(times) - len(dims)
    result: list[Dim] = [Fixed("meets a repeated dimension") for _ in range(new)]
    for dim, count in zip(dims, times[new:], strict=True):
        result.append(dim if isinstance(dim, Fixed) else np.tile(dim, count))
    return tuple(result)


def repeat_interleave(node: fx.Node, flow: Flow) -> Dims:
    """Each slot is repeated a whole number of times in place, as in grouped-query attention."""
    dims = list(flow.dims(node.args[0]))
    times, place = argument(node, "repeats"), argument(node, "dim")
    if not isinstance(times, int) or not isinstance(place, int):
        raise NoRuleError("repeats by a tensor, or of a flattened tensor")
    dim = dims[place]
    dims[place] = dim if isinstance(dim, Fixed) else np.repeat(dim, times)
    return tuple(dims)


def cat(node: fx.Node, flow: Flow) -> Dims:
    """Slots one after the other; a fixed part freezes its own slots only."""
    sources = [item for item in argument(node, "tensors") if shape_of(item) != (0,)]
    parts = [flow.dims(item) for item in sources]
    place = axis(argument(node, "dim"), len(parts[0]))
    joined = [part[place] for part in parts]
    sizes = [shape_of(item)[place] for item in sources]
    if all(isinstance(dim, Fixed) for dim in joined):
        line = joined[0]
    else:
        line = np.concatenate([_labelled(dim, size, flow) for dim, size in zip(joined, sizes, strict=True)])
    others = range(len(parts[0]))
    return tuple(line if at == place else _tied([part[at] for part in parts], flow) for at in others)


def _labelled(dim: Dim, size: int, flow: Flow) -> Slots:
    if not isinstance(dim, Fixed):
        return dim
    labels = flow.labels.fresh(size)
    flow.labels.freeze(labels, dim.why)
    return labels


def _tied(dims: list[Dim], flow: Flow) -> Dim:
    for other in dims[1:]:
        flow.labels.tie(dims[0], other)
    return next((dim for dim in dims if not isinstance(dim, Fixed)), dims[0])


def stack(node: fx.Node, flow: Flow) -> Dims:
    """Tensors of one shape side by side in a new dimension."""
    parts = [flow.dims(item) for item in argument(node, "tensors")]
    result = [_tied([part[place] for part in parts], flow) for place in range(len(parts[0]))]
    result.insert(axis(argument(node, "dim"), len(result) + 1), Fixed("meets a stacked dimension"))
    return tuple(result)


def split(node: fx.Node, flow: Flow) -> list[Dims]:
    """Equal parts keep equal sizes: position j of all parts is one channel. Unequal parts are fixed."""
    source = node.args[0]
    dims = flow.dims(source)
    place = axis(argument(node, "dim"), len(dims))
    sizes = [int(item.shape[place]) for item in node.meta["val"]]
    whole = dims[place]
    parts: list[Dim]
    if isinstance(whole, Fixed):
        parts = [whole for _ in sizes]
    elif len(set(sizes)) == 1:
        parts = list(_cut(node, whole.reshape(len(sizes), -1), flow))
    else:
        flow.labels.freeze(whole, f"is cut into unequal parts {sizes} by {node.target}")
        parts = list(np.split(whole, np.cumsum(sizes)[:-1]))
    return [(*dims[:place], part, *dims[place + 1 :]) for part in parts]


def _cut(node: fx.Node, parts: Slots, flow: Flow) -> Slots:
    """Equal parts, one in each row."""
    flow.cuts[node] = parts
    if not flow.by_number:
        flow.labels.tie_rows(parts)
    return parts


def unbind(node: fx.Node, flow: Flow) -> list[Dims]:
    """The slots of a dimension become tensors, so that their number is fixed."""
    dims = flow.dims(node.args[0])
    place = axis(argument(node, "dim"), len(dims))
    flow.labels.freeze(dims[place], f"is taken apart by {node.target}")
    return [(*dims[:place], *dims[place + 1 :]) for _ in node.meta["val"]]


def slice_(node: fx.Node, flow: Flow) -> Dims:
    """A whole dimension passes; an aligned k-th part is treated as a split into k; other cuts are fixed."""
    dims = list(flow.dims(node.args[0]))
    place = axis(argument(node, "dim"), len(dims))
    whole = dims[place]
    if not isinstance(whole, Fixed):
        dims[place] = _part(node, whole, flow)
    return tuple(dims)


def slice_scatter(node: fx.Node, flow: Flow) -> Dims:
    """A part is overwritten, as by `x[a:b] = y`: the part and what is written go together."""
    dims, written = flow.dims(node.args[0]), list(flow.dims(node.args[1]))
    place = axis(argument(node, "dim"), len(dims))
    whole = dims[place]
    part = whole if isinstance(whole, Fixed) else _part(node, whole, flow)
    for at, (ours, theirs) in enumerate(zip(dims, written, strict=True)):
        flow.labels.tie(part if at == place else ours, theirs)
    return dims


def _part(node: fx.Node, whole: Slots, flow: Flow) -> Slots:
    """The labels between `start` and `end`."""
    start, stop, step = slice(argument(node, "start"), argument(node, "end"), argument(node, "step")).indices(
        len(whole)
    )
    size = len(range(start, stop, step))
    if size == len(whole):
        return whole
    if step == 1 and size and len(whole) % size == 0 and start % size == 0:
        _cut(node, whole.reshape(-1, size), flow)
    else:
        flow.labels.freeze(whole, f"is cut at fixed positions [{start}:{stop}:{step}] by {node.target}")
    return whole[start:stop:step]


def select(node: fx.Node, flow: Flow) -> Dims:
    """One slot is picked by its number."""
    dims = flow.dims(node.args[0])
    place = axis(argument(node, "dim"), len(dims))
    flow.labels.freeze(dims[place], f"is picked by number by {node.target}")
    return (*dims[:place], *dims[place + 1 :])


def select_scatter(node: fx.Node, flow: Flow) -> Dims:
    """One slot is overwritten, as by `x[:, i] = y`: it stays, and the other dimensions go with what is written."""
    dims, rest = flow.dims(node.args[0]), list(select(node, flow))
    for ours, theirs in zip(rest, flow.dims(node.args[1]), strict=True):
        flow.labels.tie(ours, theirs)
    return dims


def index(node: fx.Node, flow: Flow) -> Dims:
    """Slots are picked by tensors of numbers: those dimensions are fixed, the others pass."""
    dims = flow.dims(node.args[0])
    indices = argument(node, "indices")
    picked = [place for place, item in enumerate(indices) if item is not None]
    for place in picked:
        flow.labels.freeze(dims[place], f"is picked by number by {node.target}")
    if any("bool" in str(indices[place].meta["val"].dtype) for place in picked):
        raise NoRuleError("a mask picks a number of slots that depends on data")
    rest = [dim for place, dim in enumerate(dims) if place not in picked]
    together = picked == list(range(picked[0], picked[0] + len(picked)))
    new: list[Dim] = [Fixed("meets a picked dimension")] * (len(shape_of(node)) - len(rest))
    at = picked[0] if together else 0
    return (*rest[:at], *new, *rest[at:])


def index_select(node: fx.Node, flow: Flow) -> Dims:
    """Slots of one dimension are picked by numbers."""
    dims = list(flow.dims(node.args[0]))
    place = axis(argument(node, "dim"), len(dims))
    flow.labels.freeze(dims[place], f"is picked by number by {node.target}")
    dims[place] = Fixed("meets a picked dimension")
    return tuple(dims)


SHAPE: dict[str, Rule] = {
    "aten.permute": permute,
    "aten.transpose": transpose,
    "aten.t": transpose,
    "aten.mT": transpose,
    "aten.numpy_T": reverse,
    "aten.adjoint": transpose,
    "aten.swapaxes": transpose,
    "aten.swapdims": transpose,
    "aten.movedim": movedim,
    "aten.moveaxis": movedim,
    "aten.unsqueeze": unsqueeze,
    "aten.squeeze": squeeze,
    "aten.expand": expand,
    "aten.expand_as": expand,
    "aten.broadcast_to": expand,
    "aten.repeat": repeat,
    "aten.repeat_interleave": repeat_interleave,
    "aten.cat": cat,
    "aten.concat": cat,
    "aten.stack": stack,
    "aten.split": split,
    "aten.split_with_sizes": split,
    "aten.chunk": split,
    "aten.unsafe_split": split,
    "aten.unsafe_chunk": split,
    "aten.unbind": unbind,
    "aten.slice": slice_,
    "aten.slice_scatter": slice_scatter,
    "aten.select": select,
    "aten.select_scatter": select_scatter,
    "aten.index": index,
    "aten.index_select": index_select,
}
