"""Rounding to a grid that gradients pass through, and step sizes that are learned.

Straight-through gradients: Bengio et al. 2013, arXiv:1308.3432. Learned step size (LSQ): Esser et al. 2020,
arXiv:1902.08153, with the asymmetric grid of LSQ+ (Bhalgat et al. 2020, arXiv:2004.09576) but a fixed zero point.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor


def round_through(x: Tensor, scale: Tensor, zero_point: Tensor, n_levels: int) -> Tensor:
    """Rounds to `n_levels` levels of step `scale`, in the input's own type; gradients pass unchanged.

    In bfloat16 (a fine-tune under autocast) a level above 128 may be off by one.
    """
    return cast("Tensor", _RoundThrough.apply(x, scale, zero_point, n_levels))  # type: ignore[no-untyped-call]


def replace(x: Tensor, rounded: Tensor) -> Tensor:
    """Gives `rounded`; gradients go to `x`, unchanged."""
    return cast("Tensor", _Replace.apply(x, rounded))  # type: ignore[no-untyped-call]


def learned_step(x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """Rounds to the integers from `low` to `high` times `scale`, which is learned.

    With v = x / s: the gradient of x passes where the grid covers v and is zero beyond; that of s is
    sum(g (round(v) - v)) inside, low or high beyond, times 1 / sqrt(n high): the steps of scales and weights compare.
    """
    return cast("Tensor", _LearnedStep.apply(x, scale, low, high))  # type: ignore[no-untyped-call]


class _RoundThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, n_levels: int) -> Tensor:
        if x.device.type != "cpu":  # numbers would have to be waited for
            lowest = -zero_point.to(x.dtype)
            rounded = x.mul(scale.reciprocal()).round_()
            return torch.clamp(rounded, lowest, lowest + (n_levels - 1)).mul_(scale)
        low = -float(zero_point)
        return x.mul(1 / float(scale)).round_().clamp_(low, low + n_levels - 1).mul_(float(scale))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0], None, None, None


class _Replace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.low, ctx.high = low, high
        return (x / scale).round().clamp(low, high) * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad,) = grads
        x, scale = ctx.saved_tensors
        v = x / scale
        inside = (v >= ctx.low) & (v <= ctx.high)
        slope = torch.where(inside, v.round() - v, v.clamp(ctx.low, ctx.high))
        share = 1 / math.sqrt(max(x.numel() / max(scale.numel(), 1), 1) * max(ctx.high, 1.0))
        return grad * inside, (grad * slope).sum_to_size(scale.shape) * share, None, None
