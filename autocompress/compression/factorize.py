"""Replaces a layer by two thinner ones through a truncated singular value decomposition of its weight.

Linear (out, in): in -> rank -> out. Conv2d, channel scheme (Zhang et al. 2015, arXiv:1505.06798): a k x k convolution
to `rank` channels, then 1 x 1 to `out`. Singular values are split evenly between the factors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autocompress.errors import CompressionError


def can_factorize(module: nn.Module) -> str | None:
    """None when the layer can be split in two, else the reason why not."""
    if isinstance(module, nn.Linear):
        return None
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            return f"grouped convolutions (groups={module.groups}) are not split into two"
        if module.padding_mode != "zeros":
            return f"padding mode {module.padding_mode!r} is not split into two"
        return None
    return f"{type(module).__name__} is not split into two"


def factorize_(model: nn.Module, path: str, rank: int) -> None:
    """Replaces the layer at `path` by a `Sequential` of two with the best rank-`rank` weight (Eckart-Young), in place.

    Raises:
        CompressionError: the layer cannot be split, or the rank is outside [1, largest rank].
    """
    module = model.get_submodule(path)
    reason = can_factorize(module)
    if reason is not None:
        raise CompressionError(f"rank_ratio is for linear and plain conv layers; {path!r}: {reason}")
    assert isinstance(module, nn.Linear | nn.Conv2d)
    largest = min(module.weight.shape[0], module.weight[0].numel())
    if not 1 <= rank <= largest:
        raise CompressionError(f"`1 <= rank <= {largest}` must hold for {path!r}, but got {rank}")
    first, second = _split_linear(module, rank) if isinstance(module, nn.Linear) else _split_conv(module, rank)
    pair = nn.Sequential(first, second).train(module.training)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, pair)


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(out, rank) and (rank, in) whose product is the best rank-`rank` approximation; computed in float64."""
    u, s, vh = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(matrix.dtype), (root[:, None] * vh[:rank]).to(matrix.dtype)


def _split_linear(layer: nn.Linear, rank: int) -> tuple[nn.Module, nn.Module]:
    left, right = _factors(layer.weight, rank)
    first = nn.Linear(layer.in_features, rank, bias=False).to(layer.weight)
    second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None).to(layer.weight)
    _fill(first.weight, right)
    _fill(second.weight, left)
    _fill(second.bias, layer.bias)
    return first, second


def _split_conv(layer: nn.Conv2d, rank: int) -> tuple[nn.Module, nn.Module]:
    left, right = _factors(layer.weight.flatten(1), rank)
    kernel, stride, dilation = (_pair(size) for size in (layer.kernel_size, layer.stride, layer.dilation))
    padding = layer.padding if isinstance(layer.padding, str) else _pair(layer.padding)
    first = nn.Conv2d(layer.in_channels, rank, kernel, stride, padding, dilation, bias=False).to(layer.weight)
    second = nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None).to(layer.weight)
    _fill(first.weight, right.reshape(first.weight.shape))
    _fill(second.weight, left.reshape(second.weight.shape))
    _fill(second.bias, layer.bias)
    return first, second


def _pair(size: tuple[int, ...]) -> tuple[int, int]:
    return size[0], size[1]


def _fill(parameter: Tensor | None, values: Tensor | None) -> None:
    if parameter is not None and values is not None:
        with torch.no_grad():
            parameter.copy_(values)
