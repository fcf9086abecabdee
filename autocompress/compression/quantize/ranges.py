"""Rules that choose the range of values that a grid spans: the extremes, or less, so that the levels lie closer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PERCENTILE = 99.99
BATCH_MOMENTUM = 0.3
_SHRINKS = torch.linspace(0.4, 1.0, 25)

RangeRule = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(lows by batch (n_batches,), highs by batch (n_batches,), a sample of the values (n,), levels) -> low, high."""


def minmax(lows: Tensor, highs: Tensor, sample: Tensor, n_levels: int) -> tuple[Tensor, Tensor]:
    """The extremes of all batches."""
    return lows.min(), highs.max()


def moving_average(lows: Tensor, highs: Tensor, sample: Tensor, n_levels: int) -> tuple[Tensor, Tensor]:
    """Each batch's extremes, averaged with exponentially falling weights: one outlier counts little."""
    low, high = lows[0], highs[0]
    for next_low, next_high in zip(lows[1:], highs[1:], strict=True):
        low, high = low.lerp(next_low, BATCH_MOMENTUM), high.lerp(next_high, BATCH_MOMENTUM)
    return low, high


def percentile(lows: Tensor, highs: Tensor, sample: Tensor, n_levels: int) -> tuple[Tensor, Tensor]:
    """Leaves out the outermost hundredth of a percent on each side that has values beyond zero."""
    share = torch.tensor([100 - PERCENTILE, PERCENTILE], dtype=sample.dtype, device=sample.device) / 100
    low, high = torch.quantile(sample, share)
    return torch.where(lows.min() < 0, low, lows.min()), high


def mse(lows: Tensor, highs: Tensor, sample: Tensor, n_levels: int) -> tuple[Tensor, Tensor]:
    """The shrunk extremes at which the rounded sample is nearest to the sample in the mean square."""
    low, high = lows.min(), highs.max()
    errors = []
    for shrink in _SHRINKS:
        scale = ((high - low) * shrink / (n_levels - 1)).clamp(min=torch.finfo(torch.float32).tiny)
        zero = torch.round(-low * shrink / scale)
        rounded = ((sample / scale).round() + zero).clamp(0, n_levels - 1).sub(zero).mul(scale)
        errors.append((rounded - sample).square().mean())
    best = _SHRINKS[int(torch.stack(errors).argmin())]
    return low * best, high * best


RANGES: dict[str, RangeRule] = {
    "minmax": minmax,
    "moving_average": moving_average,
    "percentile": percentile,
    "mse": mse,
}
"""Name -> rule for activations. Weights take the largest magnitude of a channel, or with "mse" the best share of it."""


def peak_of(weight: Tensor, level_max: int, rule: str) -> Tensor:
    """Per row of `weight` (n_channels, n), the magnitude that the highest level stands for, shape (n_channels,)."""
    peak = weight.abs().amax(1)
    if rule != "mse":
        return peak
    shrinks = _SHRINKS.to(weight)
    errors = []
    for shrink in shrinks:
        scale = (peak * shrink / level_max).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        rounded = (weight / scale).round().clamp(-level_max, level_max) * scale
        errors.append((rounded - weight).square().sum(1))
    return peak * shrinks[torch.stack(errors).argmin(0)]
