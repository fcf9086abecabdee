"""Finds the integers of the user's own modules that count channels or heads and must change with pruning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
from torch import fx, nn

from autocompress.graph.flow import Flow, shape_of
from autocompress.graph.groups import owner
from autocompress.graph.labels import Slots
from autocompress.graph.model_graph import ChannelGroup, SizeAttribute
from autocompress.graph.shrink import ATTRIBUTES, module_at, tensor_at
from autocompress.graph.trace import module_path

MOST_NAMES = 2


def attribute_variants(
    probe: nn.Module, flow: Flow, groups: tuple[ChannelGroup, ...]
) -> tuple[dict[str, list[ChannelGroup]], dict[str, set[fx.Node]]]:
    """Groups for which integers of the user's modules may have to follow, with each small set of them, smallest first.

    Returns:
        Group name -> variants in the order in which to try them, and group name -> the views that split its heads.
    """
    views = _views(flow, groups)
    parts = _parts(probe, flow, groups)
    variants: dict[str, list[ChannelGroup]] = {}
    for group in groups:
        heads = [item for node in views.get(group.name, ()) for item in _heads(probe, node, flow, group)]
        counts = _by_name([*heads, *parts.get(group.name, ())])
        sizes = _sizes(probe, group)
        if counts or sizes or group.name in views:
            names = [set_ for size in range(MOST_NAMES + 1) for set_ in combinations(counts, size)]
            chosen = [tuple(item for name in set_ for item in counts[name]) for set_ in names]
            tried = dict.fromkeys(_ordered((*some, *set_)) for some in ((), *sizes) for set_ in chosen)
            variants[group.name] = [replace(group, attributes=attributes) for attributes in tried]
    return variants, views


def _by_name(items: Iterable[SizeAttribute]) -> dict[str, list[SizeAttribute]]:
    """Attributes of one name mean the same in all modules of a kind, and so follow together."""
    found: dict[str, list[SizeAttribute]] = {}
    for item in dict.fromkeys(items):
        found.setdefault(item.name, []).append(item)
    return found


def _ordered(items: Iterable[SizeAttribute]) -> tuple[SizeAttribute, ...]:
    return tuple(sorted(set(items), key=lambda item: (item.module, item.name, item.step, item.place or 0)))


def _sizes(probe: nn.Module, group: ChannelGroup) -> list[tuple[SizeAttribute, ...]]:
    """Sets of integers, also in tuples, of modules of the user's own kinds that equal a size that the group shrinks.

    Where several integers of one module equal the size (a square weight), each set has another one of them.
    """
    found: list[list[SizeAttribute]] = []
    for coupling in group.couplings:
        path = owner(coupling.tensor) if "." in coupling.tensor else ""
        tensor, module = tensor_at(probe, coupling.tensor), module_at(probe, path)
        if tensor is None or module is None or isinstance(module, tuple(ATTRIBUTES)) or _is_of_torch(module):
            continue
        size, step = tensor.shape[coupling.dim], len(coupling.slots[0])
        found.append([SizeAttribute(path, name, step, at) for name, at, value in _integers(module) if value == size])
    found = [items for items in found if items]
    most = max(map(len, found), default=0)
    sets = (tuple(dict.fromkeys(items[min(at, len(items) - 1)] for items in found)) for at in range(most))
    return list(dict.fromkeys(sets))


def _integers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """Integers that a module keeps, and those in tuples of integers with their place."""
    for name, value in vars(module).items():
        if type(value) is int:
            yield name, None, value
        elif type(value) is tuple and all(type(item) is int for item in value):
            yield from ((name, place, item) for place, item in enumerate(value))


def _is_of_torch(module: nn.Module) -> bool:
    """Whether it is one of torch's own modules, whose numbers follow when its tensors shrink."""
    return type(module).__module__.startswith("torch.nn.")


def _groups_by_component(flow: Flow, groups: tuple[ChannelGroup, ...]) -> tuple[Slots, dict[int, ChannelGroup]]:
    component, _ = flow.labels.resolve()
    by_component: dict[int, ChannelGroup] = {}
    for group in groups:
        first = group.couplings[0]
        labels = flow.states[first.tensor][first.dim]
        for slots in first.slots:
            by_component[int(component[labels[slots[0]]])] = group  # type: ignore[index]
    return component, by_component


def _parts(probe: nn.Module, flow: Flow, groups: tuple[ChannelGroup, ...]) -> dict[str, list[SizeAttribute]]:
    """By group, integers of the module that cuts its channels into equal parts: the size of a part or of the whole."""
    component, by_component = _groups_by_component(flow, groups)
    found: dict[str, list[SizeAttribute]] = {}
    for node, rows in flow.cuts.items():
        channels = np.unique(component[rows])
        group = by_component.get(int(channels[0]))
        module = probe.get_submodule(module_path(node))
        if group is None or len(channels) != group.n_channels or _is_of_torch(module):
            continue
        names = [
            name for name, value in vars(module).items() if type(value) is int and value in (rows[0].size, rows.size)
        ]
        steps = {name: getattr(module, name) // group.n_channels for name in names}
        found.setdefault(group.name, []).extend(SizeAttribute(module_path(node), *item) for item in steps.items())
    return found


def _views(flow: Flow, groups: tuple[ChannelGroup, ...]) -> dict[str, set[fx.Node]]:
    component, by_component = _groups_by_component(flow, groups)
    views: dict[str, set[fx.Node]] = {}
    for node, places in flow.splits.items():
        for labels in places.values():
            group = by_component.get(int(component[labels[0]]))
            if group is not None:
                views.setdefault(group.name, set()).add(node)
    return views


def _heads(probe: nn.Module, node: fx.Node, flow: Flow, group: ChannelGroup) -> Iterator[SizeAttribute]:
    """Integers of the module that made the view, equal to its number of heads or to heads times their size."""
    shape, path = shape_of(node), module_path(node)
    module = probe.get_submodule(path)
    if _is_of_torch(module):
        return
    for place, labels in flow.splits[node].items():
        heads = len(np.unique(labels))  # a view may merge them with the samples
        width = heads * math.prod(shape[place + 1 : place + 2])
        for name, value in vars(module).items():
            if type(value) is int and value in (heads, width):
                yield SizeAttribute(path, name, value // group.n_channels)
