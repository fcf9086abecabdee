"""Decompositions of a model's layers: those of layers that lost nothing are made once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from autocompress.compression.low_rank.decomposition import DECOMPOSITIONS, Decomposition, Factors
from autocompress.compression.low_rank.matrices import is_touched, matrices_of, pruned_layer, seconds_of
from autocompress.compression.low_rank.moment_cache import cached_moments
from autocompress.compression.low_rank.moments import Moments
from autocompress.errors import CompressionError
from autocompress.graph import Layer, ModelGraph
from autocompress.graph.shrink import GoneSlots
from autocompress.ranks import Split, factor_shapes, parts, reason_against
from autocompress.task import Inputs

NOTHING_GONE: GoneSlots = {}


class LowRankSource:
    """Where the factors of a model's layers come from.

    Args:
        model: the uncompressed model; not touched.
        graph: of the model.
        calibration: batches of inputs; without any, factors are those of plain weight SVD.
    """

    def __init__(self, model: nn.Module, graph: ModelGraph, calibration: Sequence[Inputs] = ()) -> None:
        self._model, self._graph, self._calibration = model, graph, calibration
        self._kept: dict[tuple[str, str, bool], list[Decomposition]] = {}

    @cached_property
    def moments(self) -> Moments:
        """Second moments of every layer that can be split; collected, or read from the cache folder."""
        paths = [
            layer.path
            for layer in self._graph.layers
            if any(can_split(self._model.get_submodule(layer.path), layer, scheme) is None for scheme in DECOMPOSITIONS)
        ]
        return cached_moments(self._model, paths, self._calibration)

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
        aware = activation_aware and bool(self._calibration)
        key = (layer.path, scheme, aware)
        touched = is_touched(layer, gone)
        if touched or key not in self._kept:
            source = student if student is not None and touched else self._model
            done = gone if source is self._model else NOTHING_GONE
            weights = matrices_of(source.get_submodule(layer.path), pruned_layer(layer, gone), done)
            seconds = seconds_of(self.moments, layer, gone) if aware else [None] * len(weights)
            if not all(bool(torch.isfinite(weight).all()) for weight in weights):
                raise CompressionError(f"the weight of layer {layer.path!r} must be finite to be split, but is not")
            made = [DECOMPOSITIONS[scheme](weight, second) for weight, second in zip(weights, seconds, strict=True)]
            if touched:
                return made
            self._kept[key] = made
        return self._kept[key]


def can_split(module: Any, layer: Layer, scheme: str) -> str | None:
    """None when this module can be replaced by factors of the scheme, else the reason why not."""
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "an embedding with max_norm changes its rows when it is called"
    if isinstance(module, nn.RNNBase) and module.proj_size > 0:
        return "an LSTM with proj_size is not split"
    return reason_against(layer, scheme)


def factors_at(decompositions: Sequence[Decomposition], layer: Layer, split: Split) -> list[Factors | None]:
    """For each part of the (pruned) layer its factors at the split's ranks; None for a part that stays as it is."""
    if layer.input_shapes:
        pairs = zip(decompositions, split.ranks, strict=True)
        return [item.factors([rank]) if rank else None for item, rank in pairs]
    return [decompositions[0].factors([rank // layer.groups for rank in split.ranks])]


def blank_factors(layer: Layer, split: Split) -> list[Factors | None]:
    """What `factors_at` gives, all zeros: for weights that are loaded afterwards."""
    by_part = [[rank] for rank in split.ranks] if layer.input_shapes else [split.ranks]
    return [
        tuple(torch.zeros(shape).unflatten(0, (part.groups, -1)) for shape in factor_shapes(part, split.scheme, ranks))
        if all(ranks)
        else None
        for part, ranks in zip(parts(layer), by_part, strict=True)
    ]
