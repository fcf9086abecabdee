"""The rule of views: dimensions are merged and split, and channels keep to one of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from autocompress.graph.flow import CONSUMER, Flow, Rule, rule_key, shape_of
from autocompress.graph.labels import Dim, Dims, Fixed, NoRuleError, Slots

Run = list[tuple[int, int]]
"""Consecutive dimensions as (place, size), sizes of 1 left out."""


def view(node: fx.Node, flow: Flow) -> Dims:
    """Splits both shapes into runs of equal numbers of elements and maps run to run."""
    source = node.args[0]
    dims, before, after = flow.dims(source), shape_of(source), shape_of(node)
    if 0 in before:
        raise NoRuleError("an empty tensor is reshaped")
    sizes = node.args[1] if len(node.args) > 1 else None
    follows = sizes.index(-1) if isinstance(sizes, (list, tuple)) and -1 in sizes else None
    shuffled = _shuffled(node, dims, before, flow) if flow.by_number else None
    if shuffled is not None:
        return shuffled
    result: list[Dim] = [Fixed("meets a dimension of size 1")] * len(after)
    for old, new in runs(before, after):
        labels = _merge([dims[place] for place, _ in old], [size for _, size in old], flow)
        if flow.head_axes is None:
            _survey(node, labels, old, new, flow)
        for (place, _), dim in zip(new, _split(node, labels, new, follows, flow), strict=True):
            result[place] = dim
    return tuple(result)


def _shuffled(node: fx.Node, dims: Dims, before: tuple[int, ...], flow: Flow) -> Dims | None:
    """Dimensions of a view within a channel shuffle (view, transposes, view); None for any other view.

    The whole shuffle is run on the numbers of the channels, and its result noted for its last view.
    """
    if node in flow.shuffled:
        return flow.shuffled[node]
    labelled = [place for place, dim in enumerate(dims) if not isinstance(dim, Fixed)]
    steps = _until_next_view(node)
    if len(labelled) != 1 or steps is None:
        return None
    place = labelled[0]
    numbers = torch.arange(before[place]).view([-1 if at == place else 1 for at in range(len(before))]).expand(before)
    for step in steps:
        numbers = step.target(numbers, *step.args[1:], **step.kwargs)  # type: ignore[operator]
    table = numbers.numpy()
    kept = _only_varying_axis(table)
    if kept is None or table.shape[kept] != before[place]:
        return None
    line = np.moveaxis(table, kept, -1).reshape(-1, table.shape[kept])[0]
    fixed = Fixed("meets one of the dimensions around a channel shuffle")
    labels: Slots = dims[place][line]  # type: ignore[index]
    flow.shuffled[steps[-1]] = tuple(labels if at == kept else fixed for at in range(table.ndim))
    return tuple(fixed for _ in shape_of(node))


def _until_next_view(node: fx.Node) -> list[fx.Node] | None:
    """The node and those after it up to the next view, where each only serves the next and only moves dimensions."""
    steps = [node]
    while len(steps[-1].users) == 1:
        steps.append(next(iter(steps[-1].users)))
        if rule_key(steps[-1]) in VIEW:
            return steps
        if rule_key(steps[-1]) not in MOVES:
            return None
    return None


def runs(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[Run, Run]]:
    """The finest pairs of runs of dimensions with equal numbers of elements, in order."""
    old_dims = [(place, size) for place, size in enumerate(before) if size != 1]
    new_dims = [(place, size) for place, size in enumerate(after) if size != 1]
    pairs: list[tuple[Run, Run]] = []
    while old_dims:
        old, new = [old_dims.pop(0)], [new_dims.pop(0)]
        left, right = old[0][1], new[0][1]
        while left != right:
            if left < right:
                old.append(old_dims.pop(0))
                left *= old[-1][1]
            else:
                new.append(new_dims.pop(0))
                right *= new[-1][1]
        pairs.append((old, new))
    return pairs


def _merge(dims: list[Dim], sizes: list[int], flow: Flow) -> Dim:
    """One dimension from several: each slot takes the label of the one dimension that has any.

    Copies (from an expand) next to channels follow them, as in grouped-query attention.
    """
    labelled = [place for place, dim in enumerate(dims) if not isinstance(dim, Fixed)]
    if not labelled:
        return dims[0]
    kept = ([place for place in labelled if not flow.labels.is_uniform(dims[place])] or labelled)[-1]
    for place in labelled:
        if place != kept:
            flow.labels.freeze(dims[place], "is merged with another dimension of channels")
    shape = [1] * len(sizes)
    shape[kept] = sizes[kept]
    return np.broadcast_to(np.reshape(dims[kept], shape), sizes).ravel()  # type: ignore[arg-type]


def _survey(node: fx.Node, labels: Dim, old: Run, new: Run, flow: Flow) -> None:
    """Gives every part labels of its own; samples that are merged with a part of the channels show that it is heads."""
    if isinstance(labels, Fixed) or len(new) == 1:
        return
    parts = {place: flow.labels.fresh(size) for place, size in new}
    flow.splits.setdefault(node, {}).update(parts)
    first, size = new[0]
    if len(old) > 1 and size > old[0][1] and size % old[0][1] == 0:
        flow.heads.append(parts[first])


def _split(node: fx.Node, labels: Dim, new: Run, follows: int | None, flow: Flow) -> list[Dim]:
    """Several dimensions from one: one of them keeps the channels, and the others are fixed.

    That one is where the labels already vary alone (a flattened map is unflattened), or the one that counts
    attention heads, or the one whose size the user left to follow (-1), or the innermost.
    """
    if isinstance(labels, Fixed) or len(new) == 1:
        return [labels for _ in new]
    if flow.head_axes is None:
        return [flow.splits[node][place] for place, _ in new]
    table = labels.reshape([size for _, size in new])
    kept = _only_varying_axis(table)
    places = [place for place, _ in new]
    head = flow.head_axes.get(node)
    if kept is None:
        kept = next((places.index(place) for place in (head, follows) if place in places), len(places) - 1)
    rows = np.moveaxis(table, kept, -1).reshape(-1, table.shape[kept])
    line = flow.labels.tie_rows(np.unique(rows, axis=0))
    if places[kept] == head:
        flow.splits[node] = {head: line}
        if node in flow.blocks and kept + 1 < len(new):
            _tie_blocks(node, line, new[kept + 1][1], flow)
    fixed = Fixed("meets one of the dimensions that channels are reshaped into")
    return [line if at == kept else fixed for at in range(len(new))]


def _tie_blocks(node: fx.Node, line: Slots, size: int, flow: Flow) -> None:
    """Head i goes with the i-th block of `size` channels that the heads' projection reads, if there are as many."""
    _, first = np.unique(line, return_index=True)
    heads = line[np.sort(first)]  # each once, where samples and heads were merged
    stream = _read_channels(node, flow)
    if len(stream) == len(heads) * size:
        flow.labels.tie(stream, np.repeat(heads, size))


def _read_channels(node: fx.Node, flow: Flow) -> Slots:
    """Labels of the channels read by the layer that a value comes from; none where it comes from no layer."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        for item in node.all_input_nodes:
            path = flow.trace.states.get(item, "")
            for place, labels in enumerate(flow.states.get(path, ())):
                if flow.roles.get((path, place)) == CONSUMER and not isinstance(labels, Fixed):
                    return labels
        node = node.args[0]
    return np.empty(0, dtype=np.int64)


def _only_varying_axis(table: Slots) -> int | None:
    for axis in range(table.ndim):
        rows = np.moveaxis(table, axis, -1).reshape(-1, table.shape[axis])
        if bool((rows == rows[0]).all()):
            return axis
    return None


MOVES = frozenset(f"aten.{name}" for name in ("transpose", "permute", "swapaxes", "swapdims", "contiguous", "clone"))
NAMES = "view reshape _unsafe_view flatten unflatten view_as reshape_as"

VIEW: dict[str, Rule] = {f"aten.{name}": view for name in NAMES.split()}
