"""A model as arrays: what a candidate makes of the size, rank and bits of each layer, for many candidates at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import FULL_BITS, Candidate
from autocompress.graph import ModelGraph
from autocompress.space import DEFAULT_GRID

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_RECURRENT = ("lstm", "gru")


@dataclass(frozen=True)
class LayerShape:
    """What the latency of a layer depends on.

    Attributes:
        path, kind: as in `Layer`.
        n_out, n_in: output and input channels of the uncompressed layer.
        kernel: entries of its weight for each pair of an output and an input channel.
        n_macs: of the uncompressed layer, for one sample.
        signature: equal for layers that take the same time: kind, sizes, stride, shape of the input, what follows.
        relu: a ReLU follows at once.
        factorable: it can be split in two.
        feeds: indices of the layers that read its output.
        feeds_only_layers: nothing else reads it.
        branches: indices of the residual branches that it goes with.
    """

    path: str
    kind: str
    n_out: int
    n_in: int
    kernel: int
    n_macs: int
    signature: str
    relu: bool
    factorable: bool
    feeds: tuple[int, ...]
    feeds_only_layers: bool
    branches: tuple[int, ...]


@dataclass(frozen=True)
class GroupShape:
    """A channel group: how many slots of which layers go with each of its channels.

    Attributes:
        name, n_channels: as in `ChannelGroup`.
        out, into: (index of a layer, output or input channels of it that go with one channel of the group).
        producers: indices of the layers that make the channels.
    """

    name: str
    n_channels: int
    out: tuple[tuple[int, int], ...]
    into: tuple[tuple[int, int], ...]
    producers: tuple[int, ...]


@dataclass(frozen=True)
class ModelShape:
    """All layers, channel groups and residual branches of a model, in network order."""

    layers: tuple[LayerShape, ...]
    groups: tuple[GroupShape, ...]
    branches: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelShape:
        """The inverse of `to_dict`; KeyError or TypeError where it is not that."""
        layers = tuple(
            LayerShape(**{**item, "feeds": tuple(item["feeds"]), "branches": tuple(item["branches"])})
            for item in data["layers"]
        )
        groups = tuple(
            GroupShape(
                item["name"],
                item["n_channels"],
                tuple((layer, slots) for layer, slots in item["out"]),
                tuple((layer, slots) for layer, slots in item["into"]),
                tuple(item["producers"]),
            )
            for item in data["groups"]
        )
        return cls(layers, groups, tuple(data["branches"]))

    @classmethod
    def of(cls, graph: ModelGraph, signatures: Mapping[str, str]) -> ModelShape:
        """The arrays of a graph; `signatures` by path of the layer."""
        index = {layer.path: i for i, layer in enumerate(graph.layers)}
        layers = tuple(
            LayerShape(
                path=layer.path,
                kind=layer.kind,
                n_out=_sizes(layer.kind, layer.weight_shape)[0],
                n_in=_sizes(layer.kind, layer.weight_shape)[1],
                kernel=int(np.prod(layer.weight_shape[2:], dtype=int)),
                n_macs=layer.n_macs,
                signature=signatures.get(layer.path, layer.kind),
                relu=layer.relu,
                factorable=layer.kind in ("linear", "conv2d") and layer.groups == 1,
                feeds=tuple(index[path] for path in layer.feeds),
                feeds_only_layers=layer.feeds_only_layers,
                branches=tuple(i for i, branch in enumerate(graph.branches) if layer.path in branch.layers),
            )
            for layer in graph.layers
        )
        groups = []
        for group in graph.groups:
            sides: dict[int, dict[int, int]] = {0: {}, 1: {}}
            for coupling in group.couplings:
                path, _, name = coupling.tensor.rpartition(".")
                if path in index:
                    side = _side(layers[index[path]].kind, name, coupling.dim)
                    if side is not None:
                        sides[side][index[path]] = len(coupling.slots[0])
            producers = tuple(index[path] for path in group.producers if path in index)
            out, into = (tuple(sorted(sides[side].items())) for side in (0, 1))
            groups.append(GroupShape(group.name, group.n_channels, out, into, producers))
        return cls(layers, tuple(groups), tuple(branch.name for branch in graph.branches))


def _sizes(kind: str, shape: Sequence[int]) -> tuple[int, int]:
    """Outputs and inputs; of a recurrent layer the hidden units twice, of an embedding its width and one."""
    if kind in _RECURRENT:
        return shape[1], shape[1]
    return (shape[1], 1) if kind == "embedding" else (shape[0], shape[1])


def _side(kind: str, tensor: str, dim: int) -> int | None:
    """0 where this dimension of this tensor counts a layer's outputs, 1 where it counts its inputs."""
    if kind in _RECURRENT:
        return {("weight_hh_l0", 1): 0, ("weight_ih_l0", 1): 1}.get((tensor, dim))
    if tensor != "weight":
        return None
    return (0 if dim == 1 else None) if kind == "embedding" else {0: 0, 1: 1}.get(dim)


@dataclass(frozen=True)
class LayerStates:
    """What candidates make of the layers; each array has the shape (n_candidates, n_layers).

    Attributes:
        alive: not part of a dropped branch.
        n_out, n_in: channels that are left.
        rank: of the two layers that it was split into; 0 where it is one layer.
        bits: of weights and activations.
    """

    alive: NDArray[np.bool_]
    n_out: Ints
    n_in: Ints
    rank: Ints
    bits: Ints


class Encoder:
    """Resolves candidates against a model shape, as `compression.resolve` does; the cost is linear in the layers."""

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self._groups = [group.name for group in shape.groups]
        self._paths = [layer.path for layer in shape.layers]
        self._n_channels = np.array([group.n_channels for group in shape.groups], np.int64)
        self._size = np.array([(layer.n_out, layer.n_in) for layer in shape.layers], np.int64).reshape(-1, 2)
        self._kernel = np.array([layer.kernel for layer in shape.layers], np.int64)
        self._factorable = np.array([layer.factorable for layer in shape.layers], bool)
        self._cuts = [_Cuts([group.out for group in shape.groups]), _Cuts([group.into for group in shape.groups])]
        self._producers = _Members([group.producers for group in shape.groups])
        self._owners = _Members([layer.branches for layer in shape.layers])

    def states(self, candidates: Sequence[Candidate]) -> LayerStates:
        """The states of all layers."""
        ratios = _table([candidate.prune_ratio for candidate in candidates], self._groups, 0.0)
        ranks = _table([candidate.rank_ratio for candidate in candidates], self._paths, 0.0)
        bits = _table([candidate.weight_bits for candidate in candidates], self._paths, FULL_BITS)
        dropped = np.array([[name in item.drop for name in self.shape.branches] for item in candidates], bool)
        dropped = dropped.reshape(len(candidates), len(self.shape.branches))
        alive = ~self._owners.any(dropped)
        removed = np.minimum(np.rint(ratios * self._n_channels).astype(np.int64), self._n_channels - 1)
        removed *= self._producers.any(alive, empty=True)
        n_out, n_in = (self._size[:, side] - self._cuts[side].removed(removed, len(self._paths)) for side in (0, 1))
        return LayerStates(alive, n_out, n_in, self._rank(ranks, n_out, n_in * self._kernel), bits.astype(np.int64))

    def _rank(self, ratios: Floats, n_out: Ints, n_rest: Ints) -> Ints:
        """See `rank_on_grid` and `rank_pays`."""
        largest = np.minimum(n_out, n_rest)
        rank = np.maximum(DEFAULT_GRID, np.rint(ratios * largest / DEFAULT_GRID).astype(np.int64) * DEFAULT_GRID)
        rank = np.minimum(rank, largest)
        pays = (rank * (n_out + n_rest) < n_out * n_rest) & (ratios > 0) & self._factorable
        return np.where(pays, rank, 0)


def _table(values: Sequence[Mapping[str, float]], names: Sequence[str], missing: float) -> Floats:
    """Row for each mapping, column for each name."""
    default = [missing] * len(names)
    rows = [list(map(row.get, names, default)) if row else default for row in values]
    return np.array(rows, np.float64).reshape(len(values), len(names))


class _Members:
    """Sets of columns, one for each entity."""

    def __init__(self, members: Sequence[Sequence[int]]) -> None:
        self._which = [i for i, columns in enumerate(members) if columns]
        self._columns = [column for columns in members for column in columns]
        sizes = [len(columns) for columns in members if columns]
        self._starts = np.cumsum([0, *sizes])[:-1]
        self._n = len(members)

    def any(self, flags: NDArray[np.bool_], empty: bool = False) -> NDArray[np.bool_]:
        """Whether any of the columns of each set is true, shape (n_rows, n_sets); `empty` for a set without any."""
        found = np.full((len(flags), self._n), empty)
        if self._which:
            found[:, self._which] = np.logical_or.reduceat(flags[:, self._columns], self._starts, axis=1)
        return found


class _Cuts:
    """How many channels each layer loses with those of the groups."""

    def __init__(self, couplings: Sequence[Sequence[tuple[int, int]]]) -> None:
        cuts = sorted((layer, group, slots) for group, pairs in enumerate(couplings) for layer, slots in pairs)
        self._layers, self._groups, self._slots = np.array(cuts, np.int64).reshape(-1, 3).T
        self._which, self._starts = np.unique(self._layers, return_index=True)

    def removed(self, by_group: Ints, n_layers: int) -> Ints:
        """From channels removed of each group, (n, n_groups), to channels removed of each layer, (n, n_layers)."""
        removed = np.zeros((len(by_group), n_layers), np.int64)
        if len(self._which):
            removed[:, self._which] = np.add.reduceat(by_group[:, self._groups] * self._slots, self._starts, axis=1)
        return removed
