"""Finds which integers of the user's own modules count attention heads, so that pruned heads can be told to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import fx, nn

from autocompress.graph.flow import Flow
from autocompress.graph.model_graph import ChannelGroup, SizeAttribute
from autocompress.graph.rules.arguments import shape_of
from autocompress.graph.trace import module_path


def head_variants(
    probe: nn.Module, flow: Flow, groups: tuple[ChannelGroup, ...]
) -> tuple[dict[str, list[ChannelGroup]], dict[str, set[fx.Node]]]:
    """Groups of heads, each without attributes, with those that equal a number of heads, and with all sizes.

    Returns:
        Group name -> variants in the order in which to try them, and group name -> the views that split its heads.
    """
    views = _views(flow, groups)
    variants: dict[str, list[ChannelGroup]] = {}
    for group in groups:
        if group.name not in views:
            continue
        counts: list[SizeAttribute] = []
        widths: list[SizeAttribute] = []
        for node in views[group.name]:
            counts += _attributes(probe, node, flow, group.n_channels, whole=False)
            widths += _attributes(probe, node, flow, group.n_channels, whole=True)
        some, more = tuple(dict.fromkeys(counts)), tuple(dict.fromkeys(counts + widths))
        variants[group.name] = [replace(group, attributes=item) for item in dict.fromkeys([(), some, more])]
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


def _attributes(
    probe: nn.Module, node: fx.Node, flow: Flow, n_channels: int, *, whole: bool
) -> Iterator[SizeAttribute]:
    """Integers of the module that made the view, equal to its heads, or to heads times their size when `whole`."""
    shape = shape_of(node)
    for place in flow.splits[node]:
        heads, size = shape[place], shape[place + 1] if place + 1 < len(shape) else 1
        value, step = (heads * size, heads * size // n_channels) if whole else (heads, heads // n_channels)
        for name, item in vars(probe.get_submodule(module_path(node))).items():
            if type(item) is int and item == value:
                yield SizeAttribute(module_path(node), name, step)
