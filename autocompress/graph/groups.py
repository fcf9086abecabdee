"""Turns resolved labels into channel groups and into the reasons why other channels are frozen."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from autocompress.graph.flow import ALONG, CONSUMER, PRODUCER, Flow
from autocompress.graph.labels import Fixed, Slots
from autocompress.graph.model_graph import ChannelGroup, Coupling, Frozen

Place = tuple[str, int]
"""One dimension of one parameter or buffer."""

_ROLE_ORDER = (PRODUCER, ALONG, CONSUMER)


ALONE = "goes alone, and no channel would be left"


def find_groups(flow: Flow) -> tuple[tuple[ChannelGroup, ...], tuple[Frozen, ...], dict[str, tuple[Place, ...]]]:
    """Groups and frozen channels, both in network order of their root layers, and channels that are a whole dimension.

    The last are frozen as `ALONE`; by name, with the places of which they have all slots.

    The root of a channel is the first layer that makes it. Channels of one root that take equally many slots of the
    same tensors make one group; a root with several such groups names them `path`, `path#2`, ...
    """
    component, reasons = flow.labels.resolve()
    table = _Table(flow, component)
    members = np.flatnonzero(table.root < len(table.places))
    frozen = np.isin(members, np.fromiter(reasons, dtype=np.int64, count=len(reasons)))
    causes = [(item, reasons[int(item)]) for item in members[frozen].tolist()]
    groups, single = table.groups(members[~frozen])
    causes += [(item, ALONE) for item in single]
    return groups, table.explain(causes), {table.name(item): table.filled(item) for item in single}


class _Table:
    """Where every channel (a component of labels) has its slots.

    Attributes:
        places: dimensions with labels, in network order.
        root: first place that makes each channel, shape `(n_labels,)`; `len(places)` for no channel.
    """

    def __init__(self, flow: Flow, component: Slots) -> None:
        self._flow = flow
        self.places: list[Place] = []
        self._channels: list[Slots] = []
        for path, dims in flow.states.items():
            for dim, labels in enumerate(dims):
                if not isinstance(labels, Fixed):
                    self.places.append((path, dim))
                    self._channels.append(component[labels])
        size = len(component)
        self.root = np.full(size, len(self.places), dtype=np.int64)
        self._first = np.full(size, size, dtype=np.int64)
        for rank, place in enumerate(self.places):
            if flow.roles.get(place) == PRODUCER:
                np.minimum.at(self.root, self._channels[rank], rank)
        for rank, channels in enumerate(self._channels):
            mine = np.flatnonzero(self.root[channels] == rank)
            np.minimum.at(self._first, channels[mine], mine)

    def groups(self, members: Slots) -> tuple[tuple[ChannelGroup, ...], list[int]]:
        """Groups of the given channels, and the channels that would be alone in theirs."""
        members = members[np.lexsort((self._first[members], self.root[members]))]
        keys = zip(self.root[members].tolist(), self._shapes()[members].tolist(), strict=True)
        by_key: dict[tuple[int, int], list[int]] = defaultdict(list)
        for key, member in zip(keys, members.tolist(), strict=True):
            by_key[key].append(member)
        single = [channels[0] for channels in by_key.values() if len(channels) == 1]
        kept = [channels for channels in by_key.values() if len(channels) > 1]
        roots = [root for (root, _), channels in by_key.items() if len(channels) > 1]
        couplings = self._couplings(kept)
        used: dict[str, int] = defaultdict(int)
        groups = []
        for root, channels, coupled in zip(roots, kept, couplings, strict=True):
            name = owner(self.places[root][0])
            used[name] += 1
            groups.append(self._group(name if used[name] == 1 else f"{name}#{used[name]}", len(channels), coupled))
        return tuple(groups), single

    def _shapes(self) -> Slots:
        """A number for each channel that says how many slots it has in each place, shape `(n_labels,)`.

        The sum of a random 64-bit weight for each slot: different shapes get equal sums with probability 2^-64.
        """
        weights = np.random.default_rng(0).integers(0, 2**63 - 1, len(self.places), dtype=np.int64)
        sums = np.zeros(len(self.root), dtype=np.int64)
        for weight, channels in zip(weights, self._channels, strict=True):
            np.add.at(sums, channels, weight)
        return sums

    def _couplings(self, groups: list[list[int]]) -> list[list[Coupling]]:
        """Couplings of each group, in network order."""
        group_of = np.full(len(self.root), -1, dtype=np.int64)
        rank_of = np.zeros(len(self.root), dtype=np.int64)
        for number, members in enumerate(groups):
            group_of[members] = number
            rank_of[members] = np.arange(len(members))
        couplings: list[list[Coupling]] = [[] for _ in groups]
        for (tensor, dim), channels in zip(self.places, self._channels, strict=True):
            numbers = group_of[channels]
            for number in np.unique(numbers[numbers >= 0]).tolist():
                slots = np.flatnonzero(numbers == number)
                slots = slots[np.argsort(rank_of[channels[slots]], kind="stable")]
                rows = slots.reshape(len(groups[number]), -1).tolist()
                couplings[number].append(Coupling(tensor, dim, tuple(map(tuple, rows))))
        return couplings

    def _group(self, name: str, n_channels: int, couplings: list[Coupling]) -> ChannelGroup:
        roles = [self._flow.roles.get((item.tensor, item.dim), ALONG) for item in couplings]
        ranked = sorted(zip(roles, couplings, strict=True), key=lambda pair: _ROLE_ORDER.index(pair[0]))
        return ChannelGroup(
            name=name,
            n_channels=n_channels,
            couplings=tuple(item for _, item in ranked),
            producers=tuple(dict.fromkeys(owner(item.tensor) for role, item in ranked if role == PRODUCER)),
            consumers=tuple(dict.fromkeys(owner(item.tensor) for role, item in ranked if role == CONSUMER)),
        )

    def name(self, channel: int) -> str:
        """Path of the layer that a channel is first made by."""
        return owner(self.places[self.root[channel]][0])

    def filled(self, channel: int) -> tuple[Place, ...]:
        """The places of a channel, if it has all slots of each; else none."""
        mine = [(place, line == channel) for place, line in zip(self.places, self._channels, strict=True)]
        whole = all(slots.all() for _, slots in mine if slots.any())
        return tuple(place for place, slots in mine if slots.any()) if whole else ()

    def explain(self, causes: list[tuple[int, str]]) -> tuple[Frozen, ...]:
        """One line for each root and reason, with the number of its slots where it is not all of them."""
        counts: dict[tuple[int, str], int] = defaultdict(int)
        for channel, why in causes:
            root = int(self.root[channel])
            counts[root, why] += int((self._channels[root] == channel).sum())
        lines: dict[Frozen, None] = {}
        for (root, why), count in sorted(counts.items()):
            size = len(self._channels[root])
            share = "" if count == size else f"{count} of its {size} channels: "
            lines[Frozen(owner(self.places[root][0]), "channels", share + why)] = None
        return tuple(lines)


def owner(tensor: str) -> str:
    """Path of the module that computes with a parameter or buffer; its own path when the model itself does."""
    holder, found, _ = tensor.partition(".parametrizations.")
    return holder if found else tensor.rpartition(".")[0] or tensor
