"""Replaces a layer by a sequence of thinner ones, in place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from autocompress.compression.low_rank.decomposition import stored_precision
from autocompress.compression.low_rank.layers import layers_of, with_residual
from autocompress.compression.low_rank.matrices import pruned_layer
from autocompress.compression.low_rank.recurrent import split_recurrent
from autocompress.compression.low_rank.source import (
    NOTHING_GONE,
    LowRankSource,
    Parts,
    blank_factors,
    can_split,
)
from autocompress.compression.quantize import quantize_
from autocompress.compression.sparsify import mark_sparse_
from autocompress.errors import CompressionError
from autocompress.graph import Layer
from autocompress.graph.shrink import GoneSlots
from autocompress.space.rank_choice import Residual
from autocompress.space.ranks import Split, largest_ranks


def factorize_(
    student: nn.Module,
    layer: Layer,
    split: Split,
    source: LowRankSource | None = None,
    gone: GoneSlots = NOTHING_GONE,
    activation_aware: bool = True,
) -> None:
    """Replaces one layer of `student` by its factors, plain torch layers in a `Sequential`.

    A recurrent layer becomes a `StackedRecurrent`, factors with a residual a `ParallelSum`: torch has neither.

    Args:
        student: changed in place; these slots were removed from it before.
        layer: of the uncompressed model.
        split: scheme and ranks.
        source: of the factors; None leaves them at zero, for weights that are loaded afterwards.
        gone: slots that pruning removed.
        activation_aware: see `LowRankSource.decompositions`.

    Raises:
        CompressionError: the layer does not take the scheme, a rank is out of range, the weight is shared with another
            layer, or weights or activations are not finite.
    """
    module: Any = student.get_submodule(layer.path)
    pruned = pruned_layer(layer, gone)
    _check(student, module, pruned, split)
    made = (
        blank_factors(pruned, split)
        if source is None
        else source.factors(layer, split, gone, activation_aware, student)
    )
    parent, _, name = layer.path.rpartition(".")
    setattr(student.get_submodule(parent), name, _replacement(module, split, made))
    if split.residual is not None:
        _hold_to_form_(student, replace(layer, path=f"{layer.path}.residual"), split.residual)


def _hold_to_form_(student: nn.Module, layer: Layer, residual: Residual) -> None:
    """Lets a fine-tune keep the residual's zeros, or its few bits."""
    if residual.bits is None:
        mark_sparse_(student, [layer.path])
    else:
        quantize_(student, [layer], {layer.path: stored_precision(residual)})


def _replacement(module: Any, split: Split, made: Parts) -> nn.Module:
    if isinstance(module, nn.RNNBase):
        return split_recurrent(module, split.scheme, made.factors)
    (factors,) = made.factors
    assert factors is not None
    row = layers_of(module, split.scheme, factors)
    return row if made.residual is None else with_residual(module, row, made.residual)


def _check(student: nn.Module, module: Any, layer: Layer, split: Split) -> None:
    reason = can_split(module, layer, split.scheme, split.residual)
    if reason is not None:
        raise CompressionError(f"layer {layer.path!r} cannot be split by the scheme {split.scheme!r}: {reason}")
    largest = largest_ranks(layer, split.scheme)
    lowest = 0 if layer.input_shapes else layer.groups
    fits = len(split.ranks) == len(largest) and all(
        lowest <= rank <= limit and rank % layer.groups == 0 for rank, limit in zip(split.ranks, largest, strict=True)
    )
    if not fits:
        raise CompressionError(
            f"`{lowest} <= rank <= largest` must hold for {layer.path!r}, in multiples of {layer.groups}, with the "
            f"largest {list(largest)} of the scheme {split.scheme!r}, but got {list(split.ranks)}"
        )
    own = {id(weight) for weight in module.parameters(recurse=False)}
    for name, parameter in student.named_parameters(remove_duplicate=False):
        if id(parameter) in own and name.rpartition(".")[0] != layer.path:
            raise CompressionError(f"layer {layer.path!r} shares a weight with {name}; tied layers are not split")
