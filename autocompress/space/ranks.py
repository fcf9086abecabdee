"""What a rank means for a layer: which schemes it takes, its largest ranks, the factors' shapes and what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autocompress.graph import Layer
from autocompress.space.rank_choice import RANK_GRID, SCHEMES, RankChoice, Residual, parse_rank

_FULL_BITS = 32

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """How a layer is split, in integers.

    Attributes:
        scheme: one of `SCHEMES`.
        ranks: channels between the factors, over all groups: one number, for "tucker" two. Of an LSTM or GRU one for
            each level; 0 leaves the level as it is.
        residual: what is added to the factors, or None.
    """

    scheme: str
    ranks: tuple[int, ...]
    residual: Residual | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        residual = str(self.residual) if self.residual is not None else None
        return {"scheme": self.scheme, "ranks": list(self.ranks), "residual": residual}

    @classmethod
    def from_dict(cls, data: Any) -> Split:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        residual = parse_rank(f"1.0+{data['residual']}").residual if data["residual"] is not None else None
        if data["scheme"] not in SCHEMES:
            raise ValueError(f"no scheme is called {data['scheme']!r}")
        return cls(str(data["scheme"]), tuple(int(rank) for rank in data["ranks"]), residual)


def parts(layer: Layer, scheme: str) -> list[Layer]:
    """The matrices of a layer that are split each on its own: one for each level of an LSTM or GRU, else the layer.

    Of a level that is the input weights, or for "recurrent" what reads the hidden state: the hidden weights, and the
    level's output as the state itself.
    """
    if not layer.input_shapes:
        return [layer]
    shapes = layer.input_shapes
    if scheme == "recurrent":
        n_rows, n_hidden = layer.weight_shape
        shapes = ((n_rows + n_hidden, n_hidden),) * len(shapes)
    return [replace(layer, kind="linear", weight_shape=shape, input_shapes=()) for shape in shapes]


def reason_against(layer: Layer, scheme: str, residual: Residual | None = None) -> str | None:
    """None when a layer of this kind and shape takes the scheme and the residual, else the reason why not."""
    kernel = layer.weight_shape[2:]
    if layer.kind not in ("linear", "conv1d", "conv2d", "embedding", "lstm", "gru"):
        return f"a layer of kind {layer.kind} is not split"
    if layer.own_forward:
        return "its class has a forward of its own, or computes its weight"
    if residual is not None and layer.kind in ("embedding", "lstm", "gru"):
        return f"a residual is offered for linear layers and convolutions, not {layer.kind}"
    if scheme == "recurrent" and layer.kind != "lstm":
        return f"hidden weights are split of an LSTM, by its projection, not of {layer.kind}"
    if scheme == "recurrent" and layer.input_shapes[0][0] != layer.weight_shape[0]:
        return "hidden weights are split of an LSTM of one direction"
    if scheme == "spatial" and not (len(kernel) == 2 and min(kernel) > 1):
        return f"the spatial scheme is for conv2d with a kernel larger than 1 x 1, not {layer.kind} {kernel}"
    if scheme == "tucker" and math.prod(kernel) == 1:
        return f"the tucker scheme is for convolutions with a kernel, not {layer.kind} {kernel}"
    if (
        scheme != "spatial"
        and layer.groups > 1
        and min(layer.weight_shape[0] // layer.groups, layer.weight_shape[1]) == 1
    ):
        return f"with {layer.groups} groups each has one channel (a depthwise convolution): only spatial splits it"
    return None


def largest_ranks(layer: Layer, scheme: str) -> tuple[int, ...]:
    """The ranks at which the factors give the weight itself, over all groups; of a hidden state one less."""
    ranks: list[int] = []
    for part in parts(layer, scheme):
        n_groups, (n_out, n_in, kernel) = part.groups, _sizes(part)
        size = math.prod(kernel)
        if scheme == "spatial":
            ranks.append(n_groups * min(n_in * kernel[0], n_out // n_groups * kernel[1]))
            continue
        if scheme == "recurrent":
            ranks.append(n_in - 1)  # torch wants the projected state narrower than the state
            continue
        if scheme == "tucker":
            ranks.append(n_groups * min(n_in, n_out // n_groups * size))
        ranks.append(n_groups * min(n_out // n_groups, n_in * size))
    return tuple(ranks)


def ranks_of_ratio(layer: Layer, scheme: str, ratio: float, grid: int = RANK_GRID) -> tuple[int, ...]:
    """The nearest ranks on the grid, at least one step and at most the largest; multiples of the groups."""
    step = math.lcm(grid, layer.groups)
    return tuple(
        min(largest, max(step, round(ratio * largest / step) * step)) for largest in largest_ranks(layer, scheme)
    )


def offered_ranks(layer: Layer, scheme: str, grid: int = RANK_GRID) -> list[tuple[int, ...]]:
    """Every rank of a layer that is one matrix, rising: on the grid, and the largest; Tucker's two rise together."""
    largest = largest_ranks(layer, scheme)
    n_steps = max(1, -(-max(largest) // math.lcm(grid, layer.groups)))
    ratios = [step / n_steps for step in range(1, n_steps + 1)]
    return list(dict.fromkeys(ranks_of_ratio(layer, scheme, ratio, grid) for ratio in ratios))


def factor_shapes(layer: Layer, scheme: str, ranks: Sequence[int]) -> list[Shape]:
    """Weight shapes of the layers in a row that a layer of one matrix becomes; an embedding's table is transposed."""
    n_groups, (n_out, n_in, kernel) = layer.groups, _sizes(layer)
    ones = (1,) * len(kernel)
    if scheme == "spatial":
        return [(ranks[0], n_in, kernel[0], 1), (n_out, ranks[0] // n_groups, 1, kernel[1])]
    if scheme == "tucker":
        inner, outer = ranks
        return [(inner, n_in, *ones), (outer, inner // n_groups, *kernel), (n_out, outer // n_groups, *ones)]
    return [(ranks[0], n_in, *kernel), (n_out, ranks[0] // n_groups, *ones)]


def cost(layer: Layer, scheme: str | None, ranks: Sequence[int] = ()) -> int:
    """Multiply-accumulates per position of the output; of an embedding, which has none, its parameters.

    Args:
        layer: one matrix.
        scheme: None is the layer as it is.
        ranks: of the scheme.
    """
    if scheme is None:
        return math.prod(layer.weight_shape)
    before_stride = [1] * 3
    if layer.stride and scheme == "spatial":
        before_stride[0] = layer.stride[1]  # columns are computed at every horizontal position
    if layer.stride and scheme == "tucker":
        before_stride[0] = math.prod(layer.stride)
    shapes = factor_shapes(layer, scheme, ranks)
    return sum(math.prod(shape) * n for shape, n in zip(shapes, before_stride, strict=False))


def pays(layer: Layer, scheme: str, ranks: Sequence[int]) -> bool:
    """True when the factors cost less than the layer, which is one matrix."""
    return cost(layer, scheme, ranks) < cost(layer, None)


def split_of(layer: Layer, choice: RankChoice, ranks: Sequence[int]) -> Split | None:
    """The split at these ranks, without the levels of a recurrent layer that would cost more; None where nothing pays.

    With a residual no multiplications are saved: then the bytes must be fewer than the layer's.
    """
    if layer.input_shapes:
        worth = tuple(
            rank if cost(part, choice.scheme, [rank]) < _level_cost(layer, part, choice.scheme) else 0
            for part, rank in zip(parts(layer, choice.scheme), ranks, strict=True)
        )
        return Split(choice.scheme, worth) if any(worth) else None
    split = Split(choice.scheme, tuple(ranks), choice.residual)
    if split.residual is not None:
        return split if stored_bits(layer, split) < _FULL_BITS * math.prod(layer.weight_shape) else None
    return split if pays(layer, choice.scheme, ranks) else None


def _level_cost(layer: Layer, part: Layer, scheme: str) -> int:
    """What the weights of a level cost that the scheme replaces: a hidden state costs nothing as it is."""
    return cost(layer if scheme == "recurrent" else part, None)


def stored_bits(layer: Layer, split: Split) -> int:
    """Bits that the factors and the residual of one matrix take; of a sparse one each entry one, the others in full."""
    bits = _FULL_BITS * sum(math.prod(shape) for shape in factor_shapes(layer, split.scheme, split.ranks))
    n_entries, residual = math.prod(layer.weight_shape), split.residual
    if residual is None:
        return bits
    if residual.bits is not None:
        return bits + n_entries * residual.bits
    return bits + n_entries + _FULL_BITS * round((residual.share or 0.0) * n_entries)


def useful_ranks(choices: Iterable[Any], layer: Layer, grid: int = RANK_GRID) -> tuple[float | str | None, ...]:
    """Of rank choices those that a layer takes and at which it, unpruned, gets cheaper; in canonical form.

    Which rank keeps an energy shows only on data: such a choice stays, and the layer too where that rank does not pay.
    """

    def is_useful(asked: RankChoice) -> bool:
        if reason_against(layer, asked.scheme, asked.residual) is not None:
            return False
        if asked.ratio is None:
            return True
        return split_of(layer, asked, ranks_of_ratio(layer, asked.scheme, asked.ratio, grid)) is not None

    asked = [None if choice is None else parse_rank(choice) for choice in choices]
    useful = [choice for choice in asked if choice is None or is_useful(choice)]
    return tuple(dict.fromkeys(None if choice is None else choice.value for choice in useful))


def size_only_ranks(choices: Iterable[Any], layer: Layer) -> tuple[float | str, ...]:
    """Of rank choices those that save bytes but no time.

    An embedding has no multiplications, a residual keeps those of the layer, and a projected LSTM has no fast kernel.
    """
    asked = [parse_rank(choice) for choice in choices if choice is not None]
    return tuple(
        choice.value
        for choice in asked
        if layer.kind == "embedding" or choice.residual is not None or choice.scheme == "recurrent"
    )


def _sizes(layer: Layer) -> tuple[int, int, Shape]:
    """Outputs, inputs of each group, kernel; an embedding reads one-hot rows."""
    n_out, n_in, *kernel = layer.weight_shape
    return (n_in, n_out, ()) if layer.kind == "embedding" else (n_out, n_in, tuple(kernel))
