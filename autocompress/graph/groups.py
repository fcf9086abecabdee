"""Turns resolved labels into channel groups and into the reasons why other channels are frozen."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from autocompress.graph.flow import ALONG, CONSUMER, PRODUCER, Flow
from autocompress.graph.labels import Fixed
from autocompress.graph.model_graph import ChannelGroup, Coupling, Frozen

Place = tuple[str, int]
"""One dimension of one parameter or buffer."""

_ROLE_ORDER = (PRODUCER, ALONG, CONSUMER)


@dataclass
class _Channel:
    """One component of labels: all slots that go together."""

    slots: dict[Place, list[int]] = field(default_factory=lambda: defaultdict(list))


def find_groups(flow: Flow) -> tuple[tuple[ChannelGroup, ...], tuple[Frozen, ...]]:
    """Groups and frozen channels, both in network order of their root layers.

    Channels of one root whose couplings have the same shape make one group; a root with several such groups names
    them `path`, `path#2`, ...
    """
    component, reasons = flow.labels.resolve()
    channels = _channels(flow, component)
    groups: dict[tuple[str, tuple[tuple[Place, int], ...]], list[_Channel]] = defaultdict(list)
    frozen: dict[tuple[str, str], int] = defaultdict(int)
    totals: dict[str, int] = defaultdict(int)
    for label, channel in channels.items():
        root = next((place for place in channel.slots if flow.roles.get(place) == PRODUCER), None)
        if root is None:
            continue
        totals[root[0]] += 1
        if label in reasons:
            frozen[root[0], reasons[label]] += 1
        else:
            shape = tuple((place, len(slots)) for place, slots in channel.slots.items())
            groups[root[0], shape].append(channel)
    return _build(groups, flow, frozen, totals), _explain(frozen, totals)


def _channels(flow: Flow, component: np.ndarray[tuple[int], np.dtype[np.int64]]) -> dict[int, _Channel]:
    channels: dict[int, _Channel] = defaultdict(_Channel)
    for path, dims in flow.states.items():
        for dim, labels in enumerate(dims):
            if isinstance(labels, Fixed):
                continue
            for slot, label in enumerate(component[labels].tolist()):
                channels[label].slots[path, dim].append(slot)
    return channels


def _build(
    groups: dict[tuple[str, tuple[tuple[Place, int], ...]], list[_Channel]],
    flow: Flow,
    frozen: dict[tuple[str, str], int],
    totals: dict[str, int],
) -> tuple[ChannelGroup, ...]:
    order = {path: rank for rank, path in enumerate(flow.states)}
    built: list[ChannelGroup] = []
    used: dict[str, int] = defaultdict(int)
    for (root, shape), channels in sorted(groups.items(), key=lambda item: order[item[0][0]]):
        if len(channels) == 1:
            frozen[root, "a single channel goes with it, and none would be left"] += 1
            continue
        used[root] += 1
        name = owner(root) if used[root] == 1 else f"{owner(root)}#{used[root]}"
        built.append(_group(name, [place for place, _ in shape], channels, flow))
    return tuple(built)


def _group(name: str, places: list[Place], channels: list[_Channel], flow: Flow) -> ChannelGroup:
    ranked = sorted(places, key=lambda place: _ROLE_ORDER.index(flow.roles.get(place, ALONG)))
    couplings = tuple(Coupling(t, d, tuple(tuple(channel.slots[t, d]) for channel in channels)) for t, d in ranked)
    by_role = {role: [owner(t) for t, d in places if flow.roles.get((t, d)) == role] for role in _ROLE_ORDER}
    return ChannelGroup(
        name=name,
        n_channels=len(channels),
        couplings=couplings,
        producers=tuple(dict.fromkeys(by_role[PRODUCER])),
        consumers=tuple(dict.fromkeys(by_role[CONSUMER])),
    )


def owner(tensor: str) -> str:
    """Path of the module that holds a parameter or buffer; the parameter's own path when the model itself does."""
    return tensor.rpartition(".")[0] or tensor


def _explain(frozen: dict[tuple[str, str], int], totals: dict[str, int]) -> tuple[Frozen, ...]:
    result = []
    for (root, why), count in frozen.items():
        share = "" if count == totals[root] else f"{count} of its {totals[root]} channels: "
        result.append(Frozen(owner(root), "channels", share + why))
    return tuple(result)
