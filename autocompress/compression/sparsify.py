"""Sets the smallest entries of a layer's weight to zero, singly or in blocks, and counts the saved bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.compression.low_rank.layers import weight_paths
from autocompress.compression.quantize import stored_bits
from autocompress.errors import CompressionError
from autocompress.space.candidate import kept_of_block

SPARSE = "_autocompress_sparse"
"""Attribute of a layer whose zeros stay zero in a fine-tune; a zero of any other layer is a value like others."""


def sparsify_(model: nn.Module, path: str, sparsity: float | str) -> None:
    """Zeroes the entries of the layer's weight that `magnitude_mask` leaves out, in place.

    A layer that was split has zeros in all of its factors. The zeros are the mask; the layer is marked, so that the
    fine-tune keeps them.

    Raises:
        CompressionError: the path is no linear or convolution layer.
    """
    for layer in weight_layers(model, path):
        with torch.no_grad():
            layer.weight.mul_(magnitude_mask(layer.weight, sparsity))


def mark_sparse_(model: nn.Module, paths: Iterable[str]) -> None:
    """Notes that zeros in the weights of these layers stay zero; copies of the model keep the note."""
    for path in paths:
        for layer in weight_layers(model, path):
            setattr(layer, SPARSE, True)


def sparse_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of all layers that were made sparse."""
    for layer in model.modules():
        if getattr(layer, SPARSE, False):
            yield from (parameter for parameter in layer.parameters(recurse=False) if parameter.ndim > 1)


def magnitude_mask(weight: Tensor, sparsity: float | str) -> Tensor:
    """True for the entries that stay, shape of `weight`; of equal magnitudes the first ones stay.

    A share s removes the round(s × entries) smallest. "n:m" keeps the n largest of each m neighbours along the input
    dimension (Mishra et al. 2021, arXiv:2104.08378); a last block of fewer than m keeps at most n.
    """
    magnitude = weight.detach().abs()
    block = kept_of_block(sparsity)
    if block is None:
        n_zeros = round(float(sparsity) * weight.numel())
        order = torch.argsort(magnitude.flatten(), descending=True, stable=True)
        mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        mask[order[: weight.numel() - n_zeros]] = True
        return mask.reshape(weight.shape)
    n_kept, size = block
    rows = magnitude.movedim(1, -1)
    n_inputs = rows.shape[-1]
    blocks = F.pad(rows, (0, -n_inputs % size), value=-1.0).unflatten(-1, (-1, size))
    order = torch.argsort(blocks, dim=-1, descending=True, stable=True)[..., :n_kept]
    mask = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, order, True)
    return mask.flatten(-2)[..., :n_inputs].movedim(-1, 1)


def weight_layers(model: nn.Module, path: str) -> Iterable[nn.Linear | nn.Conv1d | nn.Conv2d]:
    """The layer at the path, or those that it was split into."""
    for leaf in weight_paths(model, path):
        layer = model.get_submodule(leaf)
        if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            raise CompressionError(
                f"sparsity is for linear, conv1d and conv2d layers, but {path!r} is a {type(layer).__name__}"
            )
        yield layer


def sparse_saving_bytes(model: nn.Module, paths: Iterable[str]) -> int:
    """Bytes that a sparse encoding of these layers' weights saves.

    Encoding: one bit per entry that says whether it is zero, filled up to whole bytes, then the other entries in
    order, in the type in which the runtime's file holds them (one byte each in an 8-bit layer). For 2:4 that is as
    small as two bits of index for each kept entry. A weight that would not get smaller is stored as it is.
    """
    saved = 0
    for path in paths:
        for layer in weight_layers(model, path):
            n_zeros = layer.weight.numel() - int(torch.count_nonzero(layer.weight))
            saved += max(0, n_zeros * stored_bits(layer) // 8 - math.ceil(layer.weight.numel() / 8))
    return saved
