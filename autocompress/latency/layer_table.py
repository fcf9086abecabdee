"""Latencies of single layers: measured ones, and a regression for sizes that were not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from autocompress.graph import Layer
from autocompress.latency.candidate_encoder import Encoder, LayerShape, ModelShape
from autocompress.latency.layer_costs import matrices_of_text
from autocompress.space.candidate import PRECISIONS, Candidate, Precision
from autocompress.space.rank_choice import RANK_GRID, parse_rank
from autocompress.space.ranks import ranks_of_ratio, split_of

_ENOUGH = 5
_SHRINK = 1e-3

Floats = NDArray[np.float64]


class LayerLatencyRegressor:
    """Times of layers by launches, multiplications, inputs and outputs, none of them with a negative cost.

    The fit is to measured layers that are as alike as possible: of the same signature, precision and number of factors;
    where there are too few of them, of the same signature and precision, of the same signature, or of the same kind.

    Args:
        layers: of the model; only measured layers of their signatures count.
        pieces: key -> time.
    """

    def __init__(self, layers: Sequence[LayerShape], pieces: Mapping[str, float]) -> None:
        self._layers = {layer.signature: layer for layer in layers}
        self._members: dict[tuple[str, ...], list[tuple[Floats, float]]] = {}
        self._fits: dict[tuple[str, ...], Floats] = {}
        for key, time in pieces.items():
            if key.partition("|")[0] in self._layers:
                work = self._work(key)
                for alike in self._alike(key):
                    self._members.setdefault(alike, []).append((work, time))

    def time(self, key: str) -> float:
        """Of a layer by its key; 0 where the table has nothing of its kind."""
        alike = [name for name in self._alike(key) if name in self._members]
        if not alike:
            return 0.0
        name = next((name for name in alike if len(self._members[name]) >= _ENOUGH), alike[-1])
        if name not in self._fits:
            works, times = zip(*self._members[name], strict=True)
            self._fits[name] = _fit(np.array(works), np.array(times))
        return float(self._work(key) @ self._fits[name])

    def _work(self, key: str) -> Floats:
        signature, n_out, n_in, rank, _ = parse_key(key)
        layer = self._layers[signature]
        shapes = matrices_of_text(layer, n_out, n_in, rank)
        n_weights = [float(math.prod(shape)) for shape in shapes]
        whole = sum(math.prod(shape) for shape in matrices_of_text(layer, layer.n_out, layer.n_in, "0"))
        places = max(layer.n_macs, 1) / whole
        n_outputs = float(sum(shape[0] for shape in shapes))
        return np.array(
            [len(shapes), sum(n_weights[:-1]) * places, n_weights[-1] * places, n_in * places, n_outputs * places]
        )

    def _alike(self, key: str) -> list[tuple[str, ...]]:
        """Names of the classes that a layer belongs to, the narrowest first."""
        signature, n_out, n_in, rank, bits = parse_key(key)
        n_factors = str(len(matrices_of_text(self._layers[signature], n_out, n_in, rank)))
        kind = self._layers[signature].kind
        return [(signature, bits, n_factors), (signature, bits), (signature,), (kind, "any size", bits), (kind,)]


def parse_key(key: str) -> tuple[str, int, int, str, str]:
    """Signature, outputs, inputs, rank and bits of a key as `layer_key` makes it."""
    signature, _, rest = key.rpartition("|")
    size, rank, bits = rest.split(" ")
    n_in, _, n_out = size.partition(">")
    return signature, int(n_out), int(n_in), rank[1:], bits[1:]


def _fit(works: Floats, times: Floats) -> Floats:
    """Costs that minimise the relative error; the smallest ones where several do."""
    scale = np.maximum(works.max(0), 1e-12)
    rows = works / scale / times[:, None]
    shrink = _SHRINK * np.diag(np.maximum(rows.max(0), 1e-12))
    costs, _ = nnls(np.concatenate([rows, shrink]), np.concatenate([np.ones(len(times)), np.zeros(works.shape[1])]))
    solution: Floats = costs / scale
    return solution


_KILO = 1e3
_N_FIGURES = 5
_SIZES, _RANKS, _BITS = 2**18, 2**8, 2**6  # of the fields of a code


def layer_key(layer: LayerShape, n_out: int, n_in: int, rank: tuple[float | str | None, int], bits: Precision) -> str:
    """Key of a layer's time; `rank` is a choice and its grid. As `conv2d 3x3 s1 @1x32x32 norm relu|16>8 r4 b8`."""
    return f"{layer.signature}|{n_in}>{n_out} r{_split_text(layer, n_out, n_in, *rank)} b{bits}"


def _split_text(layer: LayerShape, n_out: int, n_in: int, rank: float | str | None, grid: int) -> str:
    """The ranks of a choice, 0 where the layer stays whole; the choice itself where its ranks depend on data."""
    if rank is None:
        return "0"
    choice = parse_rank(rank)
    if choice.ratio is None or layer.kind not in ("linear", "conv1d", "conv2d"):
        return str(rank) if grid == RANK_GRID else f"{rank}@{grid}"
    shape = (n_out, n_in, *layer.kernel)
    pruned = Layer(layer.path, layer.kind, shape, 0, 0, groups=layer.groups, stride=layer.stride)
    split = split_of(pruned, choice, ranks_of_ratio(pruned, choice.scheme, choice.ratio, grid))
    if split is None:
        return "0"
    ranks = "x".join(map(str, split.ranks))
    return ranks if split.scheme == "channel" else f"{split.scheme}:{ranks}"


@dataclass(frozen=True)
class Sums:
    """What is known of whole candidates.

    Attributes:
        features: context terms, (n_candidates, n_features).
        naive: sum over the layers' own times, as a ratio to the uncompressed model's latency, (n_candidates,).
        outside: share of that sum that comes from layers whose time is not in the table but estimated.
        n_outside: how many layers these are.
    """

    features: Floats
    naive: Floats
    outside: Floats
    n_outside: NDArray[np.int64]


class LayerLatencyTable:
    """Times of single layers, from a table; missing ones are estimated from similar ones.

    Args:
        shape: of the model.
        pieces: key -> latency of the layer alone, as a ratio to the uncompressed model's.
        precisions: that layers may have, the full one first; others count as the last of them.
    """

    def __init__(self, shape: ModelShape, pieces: Mapping[str, float], precisions: Sequence[Precision]) -> None:
        self.shape, self.pieces, self.precisions = shape, dict(pieces), tuple(precisions)
        self._encoder = Encoder(shape)
        signatures = {layer.signature: i for i, layer in enumerate(shape.layers)}
        self._example = np.array([signatures[layer.signature] for layer in shape.layers], np.int64)
        self._places = np.array([_places(layer) for layer in shape.layers])
        fed_by = [{i for i, item in enumerate(shape.layers) if j in item.feeds} for j in range(len(shape.layers))]
        self._direct = [bool(sources) for sources in fed_by]
        members = [
            [j for j, layer in enumerate(shape.layers) if b in layer.branches] for b in range(len(shape.branches))
        ]
        self._branches = [layers for layers in members if layers]
        self._known: dict[int, tuple[float, ...]] = {}
        self._unmeasured = LayerLatencyRegressor(shape.layers, self.pieces)

    def sums(self, candidates: Sequence[Candidate]) -> Sums:
        """Adds up layer times and context terms; linear in the number of layers."""
        states = self._encoder.states(candidates)
        precision = self._precision(states.bits)
        figures = self._figures(np.stack([states.n_out, states.n_in, states.rank, states.bits]), states.alive)
        time, split, outside = figures[..., 0], figures[..., 1], figures[..., 2]
        n_values = figures[..., 3]
        terms = self._layer_terms(precision, states.alive, time, split, n_values)
        terms += self._border_terms(precision, states.alive, figures[..., 4])
        terms += self._branch_terms(precision, states.alive)
        naive = time.sum(1)
        return Sums(
            np.stack(terms, 1),
            naive,
            (time * outside).sum(1) / np.maximum(naive, 1e-12),
            outside.sum(1).astype(np.int64),
        )

    def _precision(self, bits: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of each layer's precision among those of this table."""
        index = np.full(len(PRECISIONS), len(self.precisions) - 1)
        index[[PRECISIONS.index(precision) for precision in self.precisions]] = range(len(self.precisions))
        chosen: NDArray[np.int64] = index[bits]
        return chosen

    def _layer_terms(
        self,
        precision: NDArray[np.int64],
        alive: NDArray[np.bool_],
        time: Floats,
        split: Floats,
        n_values: Floats,
    ) -> list[Floats]:
        """For each precision: time, number of layers, number of split ones, outputs."""
        terms: list[Floats] = []
        for p in range(len(self.precisions)):
            mine = alive & (precision == p)
            terms += [(time * mine).sum(1), mine.sum(1).astype(float), (split * mine).sum(1), (n_values * mine).sum(1)]
        return terms

    def _border_terms(self, precision: NDArray[np.int64], alive: NDArray[np.bool_], n_inputs: Floats) -> list[Floats]:
        """For each pair of precisions of neighbours: how many borders, and how many values cross them.

        Neighbours are layers that follow each other in network order once dropped branches are gone; those that feed
        each other directly count apart from those with a sum or another operation between them.
        """
        n, n_precisions = len(alive), len(self.precisions)
        n_kinds = 2 * n_precisions**2
        counts, values = np.zeros((n, n_kinds)), np.zeros((n, n_kinds))
        rows = np.arange(n)
        previous = np.zeros(n, np.int64)  # inputs and outputs of a model are full precision
        for j, direct in enumerate(self._direct):
            kind = (previous * n_precisions + precision[:, j]) * 2 + direct
            counts[rows, kind] += alive[:, j]
            values[rows, kind] += alive[:, j] * n_inputs[:, j]
            previous = np.where(alive[:, j], precision[:, j], previous)
        used = range(2, n_kinds)  # full to full, the first two, is what the other terms are about
        return [column for kind in used for column in (counts[:, kind], values[:, kind])]

    def _branch_terms(self, precision: NDArray[np.int64], alive: NDArray[np.bool_]) -> list[Floats]:
        """Residual branches that are there, and for each lower precision those that have it throughout."""
        whole = [
            np.stack([alive[:, members[0]] & (precision[:, members] == p).all(1) for members in self._branches], 1)
            for p in range(1, len(self.precisions))
            if self._branches
        ]
        there = [alive[:, [members[0] for members in self._branches]]] if self._branches else []
        return [flags.sum(1).astype(float) for flags in (*there, *whole)]

    def _figures(self, states: NDArray[np.int64], alive: NDArray[np.bool_]) -> Floats:
        """Time, split or not, estimated or not, outputs and inputs of every layer, (n_candidates, n_layers, 5)."""
        n_out, n_in, rank, bits = states
        codes = (((self._example * _SIZES + n_out) * _SIZES + n_in) * _RANKS + rank) * _BITS + bits
        codes = np.where(alive, codes, -1)
        unique, inverse = np.unique(codes, return_inverse=True)
        table = np.zeros((len(unique), _N_FIGURES))
        for row, code in enumerate(unique.tolist()):
            if code >= 0:
                if code not in self._known:
                    self._known[code] = self._look_up(code)
                table[row] = self._known[code]
        figures: Floats = table[inverse.reshape(codes.shape)]
        return figures

    def _look_up(self, code: int) -> tuple[float, ...]:
        code, place = divmod(code, _BITS)
        bits = PRECISIONS[place]
        code, rank = divmod(code, _RANKS)
        code, n_in = divmod(code, _SIZES)
        example, n_out = divmod(code, _SIZES)
        layer = self.shape.layers[example]
        key = layer_key(layer, n_out, n_in, self._encoder.ranks[rank], bits)
        places = float(self._places[example])
        is_split = f" r0 b{bits}" not in key
        time = self.pieces.get(key)
        found = time if time is not None else self._unmeasured.time(key)
        return (found, float(is_split), float(time is None), n_out * places / _KILO, n_in * places / _KILO)


def _places(layer: LayerShape) -> float:
    """Positions that a layer computes its outputs at, for one sample."""
    return layer.n_macs / max(1, layer.n_out * layer.n_in * int(np.prod(layer.kernel, dtype=int)) // layer.groups)
