"""Splits a candidate's ranks come to, and decompositions of layers; those of unpruned layers are made once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compression.low_rank.decomposition import (
    DECOMPOSITIONS,
    Decomposition,
    Factors,
    factors_and_residual,
    smallest_ranks,
)
from autocompress.compression.low_rank.matrices import is_touched, matrices_of, pruned_layer, second_moments_of
from autocompress.compression.low_rank.moments import Moments, cached_moments
from autocompress.errors import CompressionError
from autocompress.graph import Layer, ModelGraph
from autocompress.graph.shrink import GoneSlots
from autocompress.space.candidate import Candidate
from autocompress.space.rank_choice import SCHEMES, RankChoice, Residual, parse_rank
from autocompress.space.ranks import (
    Split,
    factor_shapes,
    offered_ranks,
    parts,
    ranks_of_ratio,
    reason_against,
    split_of,
)
from autocompress.task import Inputs

NOTHING_GONE: GoneSlots = {}


@dataclass(frozen=True)
class Parts:
    """What a layer is split into.

    Attributes:
        factors: of each of the layer's parts; None for one that is not split.
        residual: added to them, (groups, out, in, *kernel), or None.
    """

    factors: Sequence[Factors | None]
    residual: Tensor | None = None


class LowRankSource:
    """Where the factors of a model's layers come from.

    Args:
        model: the uncompressed model; not touched.
        graph: of the model.
        calibration: batches of inputs; without any, factors are those of plain weight SVD.
        moments: what would be collected from them, where it is known.
    """

    def __init__(
        self, model: nn.Module, graph: ModelGraph, calibration: Sequence[Inputs] = (), moments: Moments | None = None
    ) -> None:
        self.model, self.graph, self._calibration, self._known = model, graph, calibration, moments
        self._kept: dict[tuple[str, str, bool], list[Decomposition]] = {}
        self._made: dict[tuple[str, Split, bool], Parts] = {}

    @cached_property
    def moments(self) -> Moments:
        """Second moments of every layer that can be split: given, collected, or read from the cache folder."""
        if self._known is not None:
            return self._known
        paths = [
            layer.path
            for layer in self.graph.layers
            if any(can_split(self.model.get_submodule(layer.path), layer, scheme) is None for scheme in SCHEMES)
        ]
        return cached_moments(self.model, paths, self._calibration)

    def factors(
        self,
        layer: Layer,
        split: Split,
        gone: GoneSlots = NOTHING_GONE,
        activation_aware: bool = True,
        student: nn.Module | None = None,
    ) -> Parts:
        """What a split makes of a layer; see `decompositions`."""
        made = self._made.get((layer.path, split, activation_aware)) if not is_touched(layer, gone) else None
        if made is not None:
            return made
        pruned = pruned_layer(layer, gone)
        if split.residual is not None:
            (weight,), (second,) = self._matrices(layer, split.scheme, gone, activation_aware, student)
            ranks = [rank // pruned.groups for rank in split.ranks]
            factors, residual = factors_and_residual(weight, second, split.scheme, ranks, split.residual)
            made = Parts([factors], residual)
        else:
            made = Parts(
                [
                    decomposition.factors([rank // part.groups for rank in ranks]) if all(ranks) else None
                    for decomposition, part, ranks in zip(
                        self.decompositions(layer, split.scheme, gone, activation_aware, student),
                        parts(pruned, split.scheme),
                        _ranks_by_part(pruned, split),
                        strict=True,
                    )
                ]
            )
        if not is_touched(layer, gone):
            self._made[layer.path, split, activation_aware] = made
        return made

    def decompositions(
        self,
        layer: Layer,
        scheme: str,
        gone: GoneSlots = NOTHING_GONE,
        activation_aware: bool = True,
        student: nn.Module | None = None,
    ) -> list[Decomposition]:
        """One for each of the layer's parts, see `ranks.parts`.

        Args:
            layer: of the uncompressed model.
            scheme: one of `SCHEMES`.
            gone: slots that pruning removed. The second moment of the layer's inputs is then that of the uncompressed
                model's inputs, for the channels that are left.
            activation_aware: by the output's error on the calibration batches; else by the weight's.
            student: a pruned model whose weights count; None takes the model's.

        Raises:
            CompressionError: the layer's weight or its inputs are not finite.
        """
        key = (layer.path, scheme, activation_aware)
        touched = is_touched(layer, gone)
        if touched or key not in self._kept:
            weights, seconds = self._matrices(layer, scheme, gone, activation_aware, student)
            made = [DECOMPOSITIONS[scheme](weight, second) for weight, second in zip(weights, seconds, strict=True)]
            if touched:
                return made
            self._kept[key] = made
        return self._kept[key]

    def _matrices(
        self, layer: Layer, scheme: str, gone: GoneSlots, activation_aware: bool, student: nn.Module | None
    ) -> tuple[list[Tensor], Sequence[Tensor | None]]:
        """Weights of the layer's parts, and the second moments of what they read."""
        source, done = (self.model, gone)
        if student is not None and is_touched(layer, gone):
            source, done = student, NOTHING_GONE
        weights = matrices_of(source.get_submodule(layer.path), pruned_layer(layer, gone), scheme, done)
        if not all(bool(torch.isfinite(weight).all()) for weight in weights):
            raise CompressionError(f"the weight of layer {layer.path!r} must be finite to be split, but is not")
        if activation_aware and self._calibration:
            return weights, second_moments_of(self.moments, layer, scheme, gone)
        return weights, [None] * len(weights)


def can_split(module: Any, layer: Layer, scheme: str, residual: Residual | None = None) -> str | None:
    """None when this module can be replaced by factors of the scheme, else the reason why not."""
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "an embedding with max_norm changes its rows when it is called"
    if isinstance(module, nn.RNNBase) and module.proj_size > 0:
        return "an LSTM with proj_size is not split"
    return reason_against(layer, scheme, residual)


def blank_factors(layer: Layer, split: Split) -> Parts:
    """What `LowRankSource.factors` gives for a layer of these sizes, all zeros: for weights that are loaded later."""
    factors = [
        tuple(torch.zeros(shape).unflatten(0, (part.groups, -1)) for shape in factor_shapes(part, split.scheme, ranks))
        if all(ranks)
        else None
        for part, ranks in zip(parts(layer, split.scheme), _ranks_by_part(layer, split), strict=True)
    ]
    residual = torch.zeros(layer.weight_shape).unflatten(0, (layer.groups, -1)) if split.residual else None
    return Parts(factors, residual)


def _ranks_by_part(layer: Layer, split: Split) -> list[list[int]]:
    return [[rank] for rank in split.ranks] if layer.input_shapes else [list(split.ranks)]


def choose_splits(
    source: LowRankSource,
    candidate: Candidate,
    gone: GoneSlots,
    left_out: set[str],
    activation_aware: bool = True,
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """A split for each layer of which a rank is asked, and the layers of which every factorization would cost more.

    Args:
        source: of the uncompressed model.
        candidate: what is asked.
        gone: slots that pruning removes.
        left_out: layers that go with a dropped branch.
        activation_aware: whether energy is that of the output on the calibration data, or of the weight.

    Raises:
        CompressionError: a layer does not take the scheme that is asked of it.
    """
    splits, dense = {}, []
    for layer in source.graph.layers:
        if layer.path not in candidate.rank_ratio or layer.path in left_out:
            continue
        choice = parse_rank(candidate.rank_ratio[layer.path])
        reason = can_split(source.model.get_submodule(layer.path), layer, choice.scheme, choice.residual)
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
