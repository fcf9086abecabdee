"""Counts the multiply-accumulates, weights and activations of a candidate's layers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from autocompress.graph import Layer
from autocompress.latency.candidate_encoder import LayerShape
from autocompress.space.candidate import Precision, bits_number
from autocompress.space.rank_choice import RANK_GRID, parse_rank
from autocompress.space.ranks import factor_shapes, parts, ranks_of_ratio, split_of

_GATES = {"lstm": 4, "gru": 3}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerCost:
    """Of one layer, for one sample.

    Attributes:
        macs: multiply-accumulates.
        n_launches: matrices, each of them a kernel.
        weight_bytes: all weights.
        read_bytes: weights that one inference reads: of an embedding only the rows that are asked for.
        activation_bytes: inputs, outputs and what lies between factors.
    """

    macs: float
    n_launches: int
    weight_bytes: float
    read_bytes: float
    activation_bytes: float


def layer_cost(
    layer: LayerShape, n_out: int, n_in: int, rank: tuple[float | str | None, int], bits: Precision
) -> LayerCost:
    """Cost of a compressed layer.

    Args:
        layer: uncompressed.
        n_out: output channels that are left.
        n_in: input channels that are left.
        rank: a choice and its grid; an energy, whose rank depends on data, counts as none.
        bits: of the weights, and of the activations where they are integers.
    """
    whole = sum(math.prod(shape) for shape in _matrices(layer, layer.n_out, layer.n_in, (None, 1)))
    n_places = layer.n_macs / whole
    shapes = _matrices(layer, n_out, n_in, rank)
    n_weights = sum(math.prod(shape) for shape in shapes)
    weight_bytes = n_weights * bits_number(bits) / 8
    value_bytes = 4.0 if isinstance(bits, str) or bits < 8 else bits / 8
    if layer.kind == "embedding":
        return LayerCost(0.0, 1, weight_bytes, 0.0, n_out * value_bytes)
    n_values = n_in * math.prod(layer.stride) + sum(shape[0] for shape in shapes)
    return LayerCost(n_weights * n_places, len(shapes), weight_bytes, weight_bytes, n_values * n_places * value_bytes)


def matrices_of_text(layer: LayerShape, n_out: int, n_in: int, rank: str) -> list[Shape]:
    """Shapes of the weights that a layer's kernels read, one after the other.

    Args:
        layer: uncompressed.
        n_out: output channels that are left.
        n_in: input channels that are left.
        rank: as in the key of a layer's time: "0", ranks as "16" or "tucker:8x16", or a choice and perhaps its grid.
    """
    found = re.fullmatch(r"(?:([a-z]+):)?(\d+(?:x\d+)*)", rank)
    if rank == "0" or found is None:
        choice, _, grid = rank.partition("@")
        asked = None if rank == "0" else (float(choice) if choice.replace(".", "", 1).isdigit() else choice)
        return _matrices(layer, n_out, n_in, (asked, int(grid or RANK_GRID)))
    whole = _as_layer(layer, n_out, n_in)
    return list(factor_shapes(whole, found[1] or "channel", [int(part) for part in found[2].split("x")]))


def _matrices(layer: LayerShape, n_out: int, n_in: int, rank: tuple[float | str | None, int]) -> list[Shape]:
    whole, gates = _as_layer(layer, n_out, n_in), _GATES.get(layer.kind)
    recurrent = [] if gates is None else [(gates * n_out, n_out)]
    return [*_split(whole, rank), *recurrent]


def _as_layer(layer: LayerShape, n_out: int, n_in: int) -> Layer:
    """A layer of these sizes."""
    gates = _GATES.get(layer.kind)
    if gates is not None:
        shapes = ((gates * n_out, n_in),)
        return Layer(layer.path, layer.kind, (gates * n_out, n_out), 0, 0, input_shapes=shapes)
    shape = (n_in, n_out) if layer.kind == "embedding" else (n_out, n_in, *layer.kernel)
    return Layer(layer.path, layer.kind, shape, 0, 0, groups=layer.groups, stride=layer.stride)


def _split(layer: Layer, rank: tuple[float | str | None, int]) -> list[Shape]:
    part = parts(layer, "channel")[0]
    if rank[0] is None:
        return [part.weight_shape]
    choice = parse_rank(rank[0])
    if choice.ratio is None or choice.scheme == "recurrent":
        return [part.weight_shape]
    ranks = ranks_of_ratio(layer, choice.scheme, choice.ratio, rank[1])
    split = split_of(layer, choice, ranks)
    if split is None:
        return [part.weight_shape]
    factors = list(factor_shapes(part, split.scheme, split.ranks))
    return factors if split.residual is None else [*factors, part.weight_shape]
