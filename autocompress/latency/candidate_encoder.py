"""A model as arrays: the size, rank and bits of each layer under many candidates at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import InputError
from autocompress.graph import Layer, ModelGraph
from autocompress.space.candidate import PRECISIONS, Candidate
from autocompress.space.rank_choice import RANK_GRID

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_RECURRENT = ("lstm", "gru")
_PRECISION_NUMBERS = {precision: i for i, precision in enumerate(PRECISIONS)}


@dataclass(frozen=True)
class LayerShape:
    """The properties of a layer on which its latency depends.

    Attributes:
        path, kind: as in `Layer`.
        n_out, n_in: output and input channels of the uncompressed layer.
        kernel: of a convolution; () for other layers.
        n_macs: of the uncompressed layer, for one sample.
        signature: equal for layers that take the same time: kind, sizes, stride, shape of the input, what follows.
        relu: a ReLU follows at once.
        groups, stride: as in `Layer`.
        feeds: indices of the layers that read its output.
        feeds_only_layers: nothing else reads it.
        branches: indices of the residual branches that it goes with.
    """

    path: str
    kind: str
    n_out: int
    n_in: int
    kernel: tuple[int, ...]
    n_macs: int
    signature: str
    relu: bool
    groups: int
    stride: tuple[int, ...]
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
        """Plain JSON values: what a file of it gives back, so lists in place of tuples."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelShape:
        """The inverse of `to_dict`; KeyError or TypeError where it is not that."""
        layers = tuple(
            LayerShape(**{**item, **{key: tuple(item[key]) for key in ("kernel", "stride", "feeds", "branches")}})
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
                n_out=_sizes(layer)[0],
                n_in=_sizes(layer)[1],
                kernel=layer.weight_shape[2:],
                n_macs=layer.n_macs,
                signature=signatures.get(layer.path, layer.kind),
                relu=layer.relu,
                groups=layer.groups,
                stride=layer.stride,
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


def _sizes(layer: Layer) -> tuple[int, int]:
    """Outputs and inputs: of a recurrent layer its units and what it reads, of an embedding its width and one."""
    shape = layer.weight_shape
    if layer.kind in _RECURRENT:
        return shape[1], layer.input_shapes[0][1]
    return (shape[1], 1) if layer.kind == "embedding" else (shape[0], shape[1])


def _side(kind: str, tensor: str, dim: int) -> int | None:
    """0 where this dimension of this tensor counts a layer's outputs, 1 where it counts its inputs."""
    if kind in _RECURRENT:
        return {("weight_hh_l0", 1): 0, ("weight_ih_l0", 1): 1}.get((tensor, dim))
    if tensor != "weight":
        return None
    return (0 if dim == 1 else None) if kind == "embedding" else {0: 0, 1: 1}.get(dim)


@dataclass(frozen=True)
class LayerStates:
    """The layers under each candidate; each array has the shape (n_candidates, n_layers).

    Attributes:
        alive: not part of a dropped branch.
        n_out, n_in: channels that are left.
        rank: number of the rank that is asked for, see `Encoder.ranks`; 0 where none is.
        bits: index into `PRECISIONS`.
    """

    alive: NDArray[np.bool_]
    n_out: Ints
    n_in: Ints
    rank: Ints
    bits: Ints


class Encoder:
    """Resolves candidates against a model shape, as `compression.resolve` does; the cost is linear in the layers.

    Attributes:
        ranks: every rank choice met so far, with its grid, None first; a `LayerStates.rank` is an index into it.
    """

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self.ranks: list[tuple[float | str | None, int]] = [(None, RANK_GRID)]
        self._rank_numbers: dict[tuple[float | str | None, int], int] = {self.ranks[0]: 0}
        self._groups = {group.name: i for i, group in enumerate(shape.groups)}
        self._paths = {layer.path: i for i, layer in enumerate(shape.layers)}
        self._branches = {name: i for i, name in enumerate(shape.branches)}
        self._n_channels = np.array([group.n_channels for group in shape.groups], np.int64)
        self._size = np.array([(layer.n_out, layer.n_in) for layer in shape.layers], np.int64).reshape(-1, 2)
        self._cuts = [_Cuts([group.out for group in shape.groups]), _Cuts([group.into for group in shape.groups])]
        self._producers = _Members([group.producers for group in shape.groups])
        self._owners = _Members([layer.branches for layer in shape.layers])

    def states(self, candidates: Sequence[Candidate]) -> LayerStates:
        """The states of all layers.

        Raises:
            InputError: a candidate names something that the model does not have.
        """
        ratios = _table([item.prune_ratio for item in candidates], self._groups, 0.0)
        bits = _table([item.weight_bits for item in candidates], self._paths, 0, _PRECISION_NUMBERS).astype(np.int64)
        rank = self._rank_numbers_of(candidates)
        dropped = _table([dict.fromkeys(item.drop, 1.0) for item in candidates], self._branches, 0.0) > 0
        alive = ~self._owners.any(dropped)
        removed = np.rint(ratios * self._n_channels).astype(np.int64)
        removed = np.minimum(removed, self._n_channels - 1) * self._producers.any(alive, empty=True)
        n_out, n_in = (self._size[:, i] - self._cuts[i].removed(removed, len(self._paths)) for i in (0, 1))
        return LayerStates(alive, n_out, n_in, rank, bits)

    def _rank_numbers_of(self, candidates: Sequence[Candidate]) -> Ints:
        values = [{path: (rank, item.rank_grid) for path, rank in item.rank_ratio.items()} for item in candidates]
        for value in set(chain.from_iterable(row.values() for row in values)):
            if value not in self._rank_numbers:
                self._rank_numbers[value] = len(self.ranks)
                self.ranks.append(value)
        return _table(values, self._paths, 0.0, self._rank_numbers).astype(np.int64)


def _table(
    values: Sequence[Mapping[str, Any]],
    columns: Mapping[str, int],
    missing: float,
    numbers: Mapping[Any, float] | None = None,
) -> Floats:
    """A row for each mapping, a column for each name; `numbers` maps values that are no numbers to numbers."""
    table = np.full((len(values), len(columns)), missing, np.float64)
    sizes = list(map(len, values))
    n_entries = sum(sizes)
    given = chain.from_iterable(row.values() for row in values)
    entries = given if numbers is None else map(numbers.__getitem__, given)
    try:
        places = np.fromiter(map(columns.__getitem__, chain.from_iterable(values)), np.int64, n_entries)
    except KeyError as error:
        raise InputError(f"a candidate must name parts of the profiled model, which has no {error}") from error
    table[np.repeat(np.arange(len(values)), sizes), places] = np.fromiter(entries, np.float64, n_entries)
    return table


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
