"""Finds which integers of the user's own modules count attention heads, so that pruned heads can be told to them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from torch import fx, nn

from autocompress.graph.flow import Flow
from autocompress.graph.model_graph import ChannelGroup, SizeAttribute
from autocompress.graph.rules.arguments import shape_of
from autocompress.graph.trace import module_path

MOST_ATTRIBUTES = 3


def head_variants(
    probe: nn.Module, flow: Flow, groups: tuple[ChannelGroup, ...]
) -> tuple[dict[str, list[ChannelGroup]], dict[str, set[fx.Node]]]:
    """Groups of heads, each with every small set of integers that may count its heads, the smallest sets first.

    Returns:
        Group name -> variants in the order in which to try them, and group name -> the views that split its heads.
    """
    views = _views(flow, groups)
    variants: dict[str, list[ChannelGroup]] = {}
    for group in groups:
        if group.name in views:
            found = {item: None for node in views[group.name] for item in _attributes(probe, node, flow, group)}
            chosen = (set_ for size in range(MOST_ATTRIBUTES + 1) for set_ in combinations(found, size))
            variants[group.name] = [replace(group, attributes=attributes) for attributes in chosen]
    return variants, views


def _views(flow: Flow, groups: tuple[ChannelGroup, ...]) -> dict[str, set[fx.Node]]:
    component, _ = flow.labels.resolve()
    by_component: dict[int, str] = {}
    for group in groups:
        first = group.couplings[0]
        labels = flow.states[first.tensor][first.dim]
        for slots in first.slots:
            by_component[int(component[labels[slots[0]]])] = group.name  # type: ignore[index]
    views: dict[str, set[fx.Node]] = {}
    for node, places in flow.splits.items():
        for labels in places.values():
            name = by_component.get(int(component[labels[0]]))
            if name is not None:
                views.setdefault(name, set()).add(node)
    return views


def _attributes(probe: nn.Module, node: fx.Node, flow: Flow, group: ChannelGroup) -> Iterator[SizeAttribute]:
    """Integers of the module that made the view, equal to its number of heads or to heads times their size."""
    shape, path = shape_of(node), module_path(node)
    for place in flow.splits[node]:
        heads = shape[place]
        width = math.prod(shape[place : place + 2])
        for name, value in vars(probe.get_submodule(path)).items():
            if type(value) is int and value in (heads, width):
                yield SizeAttribute(path, name, value // group.n_channels)
