"""A layer's weights as matrices to decompose, and the second moment of its inputs without pruned channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compression.low_rank.moments import Moments
from autocompress.compression.low_rank.recurrent import stacked_weights
from autocompress.errors import CompressionError
from autocompress.graph import Layer, ModelGraph
from autocompress.graph.shrink import GoneSlots, group_slots


def gone_slots(graph: ModelGraph, removed: Mapping[str, Sequence[int]]) -> GoneSlots:
    """(parameter, dimension) -> the indices that go with these channels."""
    return group_slots([(graph.group(name), channels) for name, channels in removed.items()])


def pruned_layer(layer: Layer, gone: GoneSlots) -> Layer:
    """The layer with the sizes that are left."""

    def left(shape: Sequence[int], tensor: str, copies: int = 1) -> tuple[int, ...]:
        lost = [len(gone.get((f"{layer.path}.{tensor}", dim), ())) for dim in range(len(shape))]
        lost[0] *= copies
        return tuple(size - n for size, n in zip(shape, lost, strict=True))

    if layer.input_shapes:
        hidden = left(layer.weight_shape, "weight_hh_l0")
        n_directions = layer.input_shapes[0][0] // layer.weight_shape[0]
        shapes = [left(shape, f"weight_ih_l{i}", n_directions) for i, shape in enumerate(layer.input_shapes)]
        return replace(layer, weight_shape=hidden, input_shapes=tuple((rows, columns) for rows, columns in shapes))
    shape = left(layer.weight_shape, "weight")
    if layer.groups > 1 and shape[1] == 1:  # depthwise: groups go with their channel
        return replace(layer, weight_shape=shape, groups=shape[0] * layer.groups // layer.weight_shape[0])
    return replace(layer, weight_shape=shape)


def is_touched(layer: Layer, gone: GoneSlots) -> bool:
    """Whether any weight of the layer lost entries."""
    return any(slots and tensor.startswith(f"{layer.path}.weight") for (tensor, _), slots in gone.items())


def matrices_of(module: Any, layer: Layer, scheme: str, gone: GoneSlots) -> list[Tensor]:
    """For each of the layer's parts its weight without the slots that are gone, (groups, out, in, *kernel).

    Args:
        module: whose weights are taken.
        scheme: "recurrent" takes an LSTM's hidden weights above the unit matrix, see `ranks.parts`.
        layer: as pruned; its groups count.
        gone: nothing for a module that was pruned before.
    """
    if isinstance(module, nn.RNNBase):
        return [_level_matrix(module, layer.path, scheme, level, gone)[None] for level in range(module.num_layers)]
    weight, tensor = module.weight.detach().cpu(), f"{layer.path}.weight"
    for dim in (0, 1):
        if gone.get((tensor, dim)):
            weight = weight.index_select(dim, _kept(gone, tensor, dim, weight.shape[dim]))
    if isinstance(module, nn.Embedding):
        return [weight.mT[None]]
    return [weight.unflatten(0, (layer.groups, -1))]


def _level_matrix(module: nn.RNNBase, path: str, scheme: str, level: int, gone: GoneSlots) -> Tensor:
    kind = "hh" if scheme == "recurrent" else "ih"
    weight, tensor = stacked_weights(module, kind, level).cpu(), f"{path}.weight_{kind}_l{level}"
    n_directions = 2 if module.bidirectional else 1
    rows = _kept(gone, tensor, 0, len(weight) // n_directions)
    weight = weight.unflatten(0, (n_directions, -1))[:, rows].flatten(0, 1)
    weight = weight[:, _kept(gone, tensor, 1, weight.shape[1])]
    return torch.cat([weight, torch.eye(weight.shape[1]).to(weight)]) if scheme == "recurrent" else weight


def second_moments_of(moments: Moments, layer: Layer, scheme: str, gone: GoneSlots) -> list[Tensor]:
    """For each of the layer's parts the second moment of the inputs that are left; `layer` is the unpruned one.

    Raises:
        CompressionError: the calibration batches never reached the layer.
    """
    if f"{layer.path}:0" not in moments and layer.path not in moments:
        raise CompressionError(
            f"layer {layer.path!r} must be called on the calibration batches to be split, but never is; "
            "check the batches, or set `activation_aware=False`"
        )
    if scheme == "recurrent":
        return [
            _submatrix(
                moments[f"{layer.path}:{level + 1}"], gone, f"{layer.path}.weight_hh_l{level}", layer.weight_shape[1]
            )
            for level in range(len(layer.input_shapes))
        ]
    if layer.input_shapes:
        return [
            _submatrix(moments[f"{layer.path}:{level}"], gone, f"{layer.path}.weight_ih_l{level}", n_inputs)
            for level, (_, n_inputs) in enumerate(layer.input_shapes)
        ]
    second, tensor = moments[layer.path], f"{layer.path}.weight"
    if layer.kind == "embedding":
        return [second]
    if layer.groups > 1 and layer.weight_shape[1] == 1:
        multiplier = layer.weight_shape[0] // layer.groups
        kept = _kept(gone, tensor, 0, layer.weight_shape[0])
        return [second[kept[kept % multiplier == 0] // multiplier]]
    return [_submatrix(second, gone, tensor, layer.weight_shape[1])]


def _submatrix(second: Tensor, gone: GoneSlots, tensor: str, n_inputs: int) -> Tensor:
    """Rows and columns of the kept inputs, each with its whole window."""
    if not gone.get((tensor, 1)):
        return second
    n_taps = second.shape[1] // n_inputs
    kept = (_kept(gone, tensor, 1, n_inputs)[:, None] * n_taps + torch.arange(n_taps)).flatten()
    return second[:, kept][:, :, kept]


def _kept(gone: GoneSlots, tensor: str, dim: int, size: int) -> Tensor:
    lost = gone.get((tensor, dim), ())
    return torch.tensor([index for index in range(size) if index not in lost], dtype=torch.long)
