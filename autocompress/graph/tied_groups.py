"""Groups of equal size that only go as one, because the user's code sizes the output of a layer by what it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from autocompress.graph.model_graph import ChannelGroup
from autocompress.graph.verify import PruningVerifier

MOST_NAMES = 2


def join_groups(
    verifier: PruningVerifier, groups: Sequence[ChannelGroup], good: Sequence[ChannelGroup], reasons: Mapping[str, str]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The good groups and those that hold once they are one, in network order, and the reasons that are left.

    Channel i of a group that fails goes with channel i of all groups that fail, are as large, and are made by layers of
    one name (or two) that read it.

    Args:
        verifier: of the model.
        groups: all, in network order.
        good: those that hold.
        reasons: of those that do not, by name.
    """
    good, left = list(good), dict(reasons)
    for group in groups:
        failed = [item for item in groups if item.name in left]
        tried = _sets_read_by(group, failed) if group in failed else ()
        others = next((some for some in tried if verifier.groups_failure([_joined(group, some)]) is None), [])
        if others and verifier.groups_failure([*good, _joined(group, others)]) is None:
            good.append(_joined(group, others))
            for item in (group, *others):
                del left[item.name]
    places = [group.name for group in groups]
    return sorted(good, key=lambda group: places.index(group.name)), left


def _sets_read_by(group: ChannelGroup, failed: Sequence[ChannelGroup]) -> Iterator[list[ChannelGroup]]:
    by_name: dict[str, list[ChannelGroup]] = {}
    for other in failed:
        is_alike = other.name != group.name and other.n_channels == group.n_channels and other.producers
        if is_alike and set(other.producers) <= set(group.consumers):
            by_name.setdefault(other.producers[0].rpartition(".")[2], []).append(other)
    for size in range(1, MOST_NAMES + 1):
        for names in combinations(by_name, size):
            yield [other for name in names for other in by_name[name]]


def _joined(group: ChannelGroup, others: Sequence[ChannelGroup]) -> ChannelGroup:
    items = (group, *others)
    return replace(
        group,
        couplings=tuple(coupling for item in items for coupling in item.couplings),
        producers=tuple(dict.fromkeys(path for item in items for path in item.producers)),
        consumers=tuple(dict.fromkeys(path for item in items for path in item.consumers)),
    )
