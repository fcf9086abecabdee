"""Torch layers that compute a factorized linear, convolution or embedding layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compression.low_rank.decomposition import Factors

_BEARERS = {"channel": (0, 0), "spatial": (0, 1), "tucker": (1, 1)}
"""Scheme -> for each spatial dimension the factor that has its kernel, stride, padding and dilation."""


class ParallelSum(nn.Module):
    """The sum of two modules' outputs: a layer's factors and their residual.

    torch has no container for sums.

    Attributes:
        low_rank: the factors, with the layer's bias.
        residual: of the layer's own type and shape, without bias.
    """

    def __init__(self, low_rank: nn.Sequential, residual: nn.Module) -> None:
        super().__init__()
        self.low_rank, self.residual = low_rank, residual

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as the layer."""
        total: Tensor = self.low_rank(x) + self.residual(x)
        return total


def with_residual(module: nn.Module, low_rank: nn.Sequential, weight: Tensor) -> ParallelSum:
    """The factors in parallel with a copy of the layer of weight (groups, out, in, *kernel) without bias."""
    residual: Any = copy.deepcopy(module)
    residual.register_parameter("bias", None)
    with torch.no_grad():
        residual.weight.copy_(weight.flatten(0, 1))
    return ParallelSum(low_rank, residual).train(module.training)


def weight_paths(model: nn.Module, path: str) -> list[str]:
    """Paths of the plain layers that the layer at `path` has become; of one that was not split, its own."""
    module = model.get_submodule(path)
    if isinstance(module, nn.Sequential | ParallelSum):
        return [leaf for name, _ in module.named_children() for leaf in weight_paths(model, f"{path}.{name}")]
    return [path]


def layers_of(module: Any, scheme: str, factors: Factors) -> nn.Sequential:
    """A sequence of plain layers that computes `module` with the composed weight; the bias goes to the last one.

    Args:
        module: `nn.Linear`, `nn.Conv1d`, `nn.Conv2d` or `nn.Embedding`.
        scheme: of the factors.
        factors: first layer first, each (groups, out, in, *kernel).
    """
    if isinstance(module, nn.Linear):
        first, second = factors
        row: list[nn.Module] = [linear(first[0], None, module), linear(second[0], module.bias, module)]
    elif isinstance(module, nn.Embedding):
        first, second = factors
        row = [_embedding(module, first[0].mT), linear(second[0], None, module)]
    else:
        row = [
            _conv(module, weight, scheme, index, module.bias if index == len(factors) - 1 else None)
            for index, weight in enumerate(factors)
        ]
    return nn.Sequential(*row).train(module.training)


def linear(weight: Tensor, bias: Tensor | None, like: Any) -> nn.Linear:
    """A linear layer of that weight (out, in), in the type and place of the first weight of `like`."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    _fill(layer, weight, bias, like)
    return layer


def _embedding(module: nn.Embedding, weight: Tensor) -> nn.Embedding:
    layer = nn.Embedding(
        module.num_embeddings,
        weight.shape[1],
        module.padding_idx,
        scale_grad_by_freq=module.scale_grad_by_freq,
        sparse=module.sparse,
        device="meta",
    )
    _fill(layer, weight, None, module)
    return layer


def _conv(module: Any, weight: Tensor, scheme: str, index: int, bias: Tensor | None) -> nn.Module:
    """The factor with its part of the convolution's stride, padding and dilation."""
    n_groups, n_out, n_in, *kernel = weight.shape
    bears = [bearer == index for bearer in _BEARERS[scheme][: len(kernel)]]

    def borne(sizes: Sequence[int], otherwise: int) -> tuple[int, ...]:
        return tuple(size if mine else otherwise for size, mine in zip(sizes, bears, strict=True))

    layer = (nn.Conv1d if len(kernel) == 1 else nn.Conv2d)(
        n_groups * n_in,
        n_groups * n_out,
        kernel,  # type: ignore[arg-type]
        borne(module.stride, 1),  # type: ignore[arg-type]
        module.padding if isinstance(module.padding, str) else borne(module.padding, 0),  # type: ignore[arg-type]
        borne(module.dilation, 1),  # type: ignore[arg-type]
        groups=n_groups,
        bias=bias is not None,
        padding_mode=module.padding_mode,
        device="meta",
    )
    _fill(layer, weight.flatten(0, 1), bias, module)
    return layer


def _fill(layer: Any, weight: Tensor, bias: Tensor | None, like: Any) -> None:
    """Gives a layer without storage its parameters; copies, so that nothing is shared with `like`."""
    source: Tensor = next(parameter for parameter in like.parameters(recurse=False))
    layer.weight = nn.Parameter(weight.detach().to(source).contiguous(), requires_grad=source.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
