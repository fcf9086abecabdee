"""From what a candidate asks of ranks to integers, for the layers as pruning leaves them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from autocompress.compression.low_rank.decomposition import Decomposition, smallest_ranks
from autocompress.compression.low_rank.matrices import pruned_layer
from autocompress.compression.low_rank.source import LowRankSource, can_split
from autocompress.errors import CompressionError
from autocompress.graph import Layer, ModelGraph
from autocompress.graph.shrink import GoneSlots
from autocompress.space.candidate import Candidate
from autocompress.space.rank_choice import RankChoice, parse_rank
from autocompress.space.ranks import Split, offered_ranks, parts, ranks_of_ratio, split_of


def choose_splits(
    model: nn.Module,
    graph: ModelGraph,
    candidate: Candidate,
    gone: GoneSlots,
    left_out: set[str],
    source: LowRankSource,
    activation_aware: bool = True,
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """A split for each layer of which a rank is asked, and the layers of which every factorization would cost more.

    Args:
        model: the uncompressed model.
        graph: of the model.
        candidate: what is asked.
        gone: slots that pruning removes.
        left_out: layers that go with a dropped branch.
        source: of the energies.
        activation_aware: whether energy is that of the output on the calibration data, or of the weight.

    Raises:
        CompressionError: a layer does not take the scheme that is asked of it.
    """
    splits, dense = {}, []
    for layer in graph.layers:
        if layer.path not in candidate.rank_ratio or layer.path in left_out:
            continue
        choice = parse_rank(candidate.rank_ratio[layer.path])
        reason = can_split(model.get_submodule(layer.path), layer, choice.scheme, choice.residual)
        if reason is not None:
            raise CompressionError(f"rank_ratio {choice.value!r} does not fit layer {layer.path!r}: {reason}")
        pruned = pruned_layer(layer, gone)
        if choice.ratio is not None:
            ranks = ranks_of_ratio(pruned, choice.scheme, choice.ratio, candidate.rank_grid)
        else:
            decompositions = source.decompositions(layer, choice.scheme, gone, activation_aware)
            ranks = _ranks_of_energy(pruned, choice, decompositions, candidate.rank_grid)
        split = split_of(pruned, choice, ranks)
        if split is None:
            dense.append(layer.path)
        else:
            splits[layer.path] = split
    return splits, tuple(dense)


def _ranks_of_energy(
    pruned: Layer, choice: RankChoice, decompositions: Sequence[Decomposition], grid: int
) -> tuple[int, ...]:
    """The smallest ranks on the grid that keep the energy."""
    ranks: list[int] = []
    for part, decomposition in zip(parts(pruned, choice.scheme), decompositions, strict=True):
        offered = offered_ranks(part, choice.scheme, grid)
        by_group = [tuple(rank // part.groups for rank in item) for item in offered]
        place = by_group.index(smallest_ranks(decomposition, choice.energy or 1.0, by_group))
        ranks.extend(offered[place])
    return tuple(ranks)
