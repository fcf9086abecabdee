"""Groups that take only some sizes: chained splits and shuffles tie all channels together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from autocompress.graph.flow import ALONG, CONSUMER, PRODUCER, Flow, find_head_axes, propagate
from autocompress.graph.groups import Place, owner
from autocompress.graph.labels import Fixed
from autocompress.graph.model_graph import ChannelGroup, Coupling
from autocompress.graph.rules import RULES
from autocompress.graph.shrink import shrink_
from autocompress.graph.trace import ExampleInputs, UntraceableError, share_parameters, trace_model
from autocompress.graph.verify import PruningVerifier

SHARES = (0.9, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.1)
"""Of the channels, rounded down: the sizes that are tried. Each costs a trace of the model."""

Kind = frozenset[Place]
"""Channels that have a slot in the same places can stand in for each other."""


@dataclass(frozen=True)
class _Table:
    """The channels of some places: the number of each slot's channel, and the channels of each kind."""

    lines: dict[Place, list[int]]
    kinds: dict[Kind, list[int]]


def find_size_constrained_groups(
    probe: nn.Module, example_inputs: Tensor | ExampleInputs, flow: Flow, stuck: Sequence[tuple[Place, ...]]
) -> list[ChannelGroup]:
    """Groups from sets of places whose slots all hang together in one channel, with the sizes they may have.

    A channel shuffle of halves, and a split into halves, need equal numbers and no more: slot i of what is left of one
    half meets slot i of what is left of the other, whichever they were. So a copy is cut to a smaller size, without
    regard to which slots go, and traced: each of its channels, too, has a set of places. A kind of which the copy has
    no more channels than the model is filled with channels of the model, in the copy's order; where that holds for
    all kinds, the copy with their weights is the model with the other channels masked.

    Args:
        probe: the model in evaluation mode.
        example_inputs: of the model.
        flow: labels of the model without the ties of splits and shuffles.
        stuck: for each group the places that lose channels.
    """
    tables = [_table(flow, places) for places in stuck]
    found = [(places, table) for places, table in zip(stuck, tables, strict=True) if table is not None]
    kept: list[dict[int, dict[Place, tuple[int, ...]]]] = [{} for _ in found]
    for share in SHARES if found else ():
        sizes = [max(1, int(_n_channels(table) * share)) for _, table in found]
        small = _smaller_flow(probe, example_inputs, [table for _, table in found], sizes)
        for (places, table), size, slots in zip(found, sizes, kept, strict=True):
            order = _filled(table, _table(small, places)) if small is not None else None
            if order is not None and size < _n_channels(table):
                slots[size] = order
    return [_group(flow, table, slots) for (_, table), slots in zip(found, kept, strict=True) if slots]


def resolve_sizes(verifier: PruningVerifier, group: ChannelGroup) -> ChannelGroup | str:
    """The group with those of its sizes at which a pruned copy is right, or the reason why none is."""
    failures = [verifier.failure([(group, range(group.n_channels - size))]) for size in group.sizes]
    good = [at for at, why in enumerate(failures) if why is None]
    if not good:
        return str(failures[0])
    couplings = tuple(replace(item, kept=tuple(item.kept[at] for at in good)) for item in group.couplings)
    return replace(group, couplings=couplings, sizes=tuple(group.sizes[at] for at in good))


def _table(flow: Flow, places: tuple[Place, ...]) -> _Table | None:
    """None where channels are frozen, or have several slots in one place."""
    component, reasons = flow.labels.resolve()
    lines: dict[Place, list[int]] = {}
    where: dict[int, list[Place]] = {}
    for tensor, dim in places:
        labels = flow.states[tensor][dim]
        if isinstance(labels, Fixed):
            return None
        lines[tensor, dim] = component[labels].tolist()
        for channel in lines[tensor, dim]:
            where.setdefault(channel, []).append((tensor, dim))
    if not reasons.keys().isdisjoint(where) or any(len(set(items)) < len(items) for items in where.values()):
        return None
    kinds: dict[Kind, list[int]] = {}
    for channel, items in where.items():
        kinds.setdefault(frozenset(items), []).append(channel)
    return _Table(lines, kinds)


def _n_channels(table: _Table) -> int:
    """What the sizes of all places are whole multiples of."""
    return math.gcd(*(len(line) for line in table.lines.values()))


def _smaller_flow(
    probe: nn.Module, example_inputs: Tensor | ExampleInputs, tables: Sequence[_Table], sizes: Sequence[int]
) -> Flow | None:
    """Labels of a copy in which each group has the given size; None where that cannot be traced."""
    gone: dict[Place, set[int]] = {}
    for table, size in zip(tables, sizes, strict=True):
        for place, line in table.lines.items():
            gone[place] = set(range(len(line) * size // _n_channels(table), len(line)))
    copy = share_parameters(probe)
    shrink_(copy, gone)
    try:
        trace = trace_model(copy, example_inputs)
    except UntraceableError:
        return None
    return propagate(trace, RULES, find_head_axes(trace, RULES), by_number=True)


def _filled(large: _Table, small: _Table | None) -> dict[Place, tuple[int, ...]] | None:
    """For each place of the small table, the slots of the large one that fill it; None where a kind has too few."""
    if small is None:
        return None
    origin: dict[int, int] = {}
    for kind, channels in small.kinds.items():
        candidates = large.kinds.get(kind, [])
        if len(candidates) < len(channels):
            return None
        origin.update(zip(channels, candidates, strict=False))
    order = {}
    for place, line in small.lines.items():
        slot_of = {channel: slot for slot, channel in enumerate(large.lines[place])}
        order[place] = tuple(slot_of[origin[channel]] for channel in line)
    return order


def _group(flow: Flow, table: _Table, kept: Mapping[int, Mapping[Place, tuple[int, ...]]]) -> ChannelGroup:
    roles = {place: flow.roles.get(place, ALONG) for place in table.lines}
    n_channels = _n_channels(table)
    couplings = []
    for role in (PRODUCER, ALONG, CONSUMER):
        for place, line in table.lines.items():
            if roles[place] == role:
                slots = np.arange(len(line)).reshape(n_channels, -1).tolist()
                orders = tuple(order[place] for order in kept.values())
                couplings.append(Coupling(*place, tuple(map(tuple, slots)), orders))
    producers, consumers = (
        tuple(dict.fromkeys(owner(place[0]) for place, role in roles.items() if role == kind))
        for kind in (PRODUCER, CONSUMER)
    )
    return ChannelGroup(producers[0], n_channels, tuple(couplings), producers, consumers, sizes=tuple(kept))
