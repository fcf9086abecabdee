"""Rounds weights to their stored values: int8 by channel, int4 by group, a code table, or bfloat16.

Each quantizer sees a weight of shape (n_channels, ...) as a matrix (n_channels, n). Scales follow from the weight
itself: `refresh` sets them, and evaluation and export then see constants.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autocompress.compression.quantize.ranges import peak_of
from autocompress.compression.quantize.rounding import learned_step, replace

INT8_MAX = 127  # symmetric: -128 is never used, so that a sign flip (a negative batch-norm scale) stays exact
HALF_RANGE_MAX = 63  # 2 · 255 · 63 fits int16: kernels that add two products in 16 bits do not saturate
GROUP_SIZES = (32, 16)
GROUP_LEVELS = 16
_KMEANS_STEPS = 25
_MAX_SAMPLES = 65536
_SMALLEST_SCALE = 1e-12


class WeightQuantizer(nn.Module):
    """Base of the weight quantizers.

    Attributes:
        bits: of one stored weight, without scales.
        rule: "minmax" or "mse": how int8 scales are chosen.
        through: True where training sees the weight itself, see `delay_rounding_`.
    """

    bits = 8
    through = False
    rule = "minmax"

    def refresh(self, weight: Tensor) -> None:
        """Sets scales (and tables) from the weight."""
        raise NotImplementedError

    def rounded(self, weight: Tensor) -> Tensor:
        """The stored values, without gradient; same shape."""
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        """Rounded weight of the same shape; gradients pass straight through."""
        return replace(weight, self.rounded(weight.detach()))


class PerChannelInt8Quantizer(WeightQuantizer):
    """int8, symmetric, one scale per channel (or one in all: `n_channels=1`).

    Args:
        n_channels: how many scales.
        level_max: the largest code, `INT8_MAX` or, for kernels that saturate, `HALF_RANGE_MAX`.
    """

    scale: Tensor

    def __init__(self, n_channels: int, level_max: int = INT8_MAX) -> None:
        super().__init__()
        self.level_max = level_max
        self.register_buffer("scale", torch.ones(n_channels))

    def refresh(self, weight: Tensor) -> None:
        """Scale = the channel's peak / `level_max`; an all-zero channel keeps scale 1."""
        if isinstance(self.scale, nn.Parameter):
            return
        matrix = weight.detach().float().reshape(self.scale.numel(), -1)
        peak = peak_of(matrix, self.level_max, self.rule)
        self.scale.copy_(torch.where(peak > 0, peak / self.level_max, torch.ones_like(peak)))

    def rounded(self, weight: Tensor) -> Tensor:
        """See `WeightQuantizer.rounded`."""
        scale = self._by_channel(weight)
        return weight.div(scale).round_().clamp_(-self.level_max, self.level_max).mul_(scale)

    def forward(self, weight: Tensor) -> Tensor:
        """See `WeightQuantizer.forward`; with learned scales by LSQ."""
        if not isinstance(self.scale, nn.Parameter):
            return super().forward(weight)
        return learned_step(weight, self._by_channel(weight), -self.level_max, self.level_max)

    def learn_(self) -> None:
        """Makes the scales a parameter."""
        scale = self.scale.detach().clone()
        del self._buffers["scale"]
        self.scale = nn.Parameter(scale)

    def _by_channel(self, weight: Tensor) -> Tensor:
        scale = self.scale.clamp(min=_SMALLEST_SCALE).to(weight.dtype)
        return scale if scale.numel() == 1 else scale.reshape(-1, *[1] * (weight.ndim - 1))


class GroupwiseInt4Quantizer(WeightQuantizer):
    """uint4, asymmetric, one scale and zero point per channel and group of inputs.

    Groups are of 32, or of 16 where only that divides the inputs; if neither does, the last one is short.
    """

    bits = 4
    scale: Tensor
    zero_point: Tensor

    def __init__(self, n_channels: int, n_inputs: int) -> None:
        super().__init__()
        self.group_size = next((size for size in GROUP_SIZES if n_inputs % size == 0), GROUP_SIZES[0])
        n_groups = -(-n_inputs // self.group_size)
        self.register_buffer("scale", torch.ones(n_channels, n_groups))
        self.register_buffer("zero_point", torch.zeros(n_channels, n_groups))

    def refresh(self, weight: Tensor) -> None:
        """Each group's own range, always with zero in it; an all-zero group keeps scale 1."""
        groups = self._groups(weight.detach().float())
        low, high = groups.amin(2).clamp(max=0.0), groups.amax(2).clamp(min=0.0)
        width = high - low
        self.scale.copy_(torch.where(width > 0, width / (GROUP_LEVELS - 1), torch.ones_like(width)))
        self.zero_point.copy_((-low / self.scale).round().clamp(0, GROUP_LEVELS - 1))

    def rounded(self, weight: Tensor) -> Tensor:
        """See `WeightQuantizer.rounded`."""
        scale, zero = self.scale[:, :, None], self.zero_point[:, :, None]
        groups = (self._groups(weight.float()) / scale).round_().add_(zero).clamp_(0, GROUP_LEVELS - 1)
        flat = groups.sub_(zero).mul_(scale).flatten(1)[:, : weight[0].numel()]
        return flat.reshape(weight.shape).to(weight.dtype)

    def _groups(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        short = self.scale.shape[1] * self.group_size - matrix.shape[1]
        return nn.functional.pad(matrix, (0, short)).reshape(matrix.shape[0], -1, self.group_size)


class CodebookQuantizer(WeightQuantizer):
    """`bits` bits a weight: an index into a table of 2^bits values, times the channel's peak.

    The table is made by k-means (Lloyd 1982, as in Han et al. 2016, arXiv:1510.00149) from quantiles, for the many, and
    an even grid, for the tails; zero is always in it, so that sparsity survives.
    """

    scale: Tensor
    table: Tensor

    def __init__(self, n_channels: int, bits: int) -> None:
        super().__init__()
        self.bits = bits  # hides the class's
        self.register_buffer("scale", torch.ones(n_channels))
        self.register_buffer("table", torch.linspace(-1, 1, 2**bits))

    def refresh(self, weight: Tensor) -> None:
        """Scales from the channels' peaks; then the table, in training one step on from the last one."""
        matrix = weight.detach().float().flatten(1)
        peak = matrix.abs().amax(1)
        self.scale.copy_(torch.where(peak > 0, peak, torch.ones_like(peak)))
        values = (matrix / self.scale[:, None]).flatten()
        values = values[:: max(1, values.numel() // _MAX_SAMPLES)]
        table = self.table.clone()
        if not self.training:
            half = table.numel() // 2
            device = values.device
            spread = torch.linspace(float(values.min()), float(values.max()), half, device=device)
            table = torch.cat([torch.quantile(values, torch.linspace(0, 1, half, device=device)), spread]).sort().values
        for _ in range(1 if self.training else _KMEANS_STEPS):
            nearest = _nearest(table, values)
            sums = torch.zeros_like(table).index_add_(0, nearest, values)
            counts = torch.zeros_like(table).index_add_(0, nearest, torch.ones_like(values))
            table = torch.where(counts > 0, sums / counts.clamp(min=1), table).sort().values
        table[table.abs().argmin()] = 0.0
        self.table.copy_(table)

    def rounded(self, weight: Tensor) -> Tensor:
        """See `WeightQuantizer.rounded`."""
        scale = self.scale.reshape(-1, *[1] * (weight.ndim - 1))
        return (self.table[_nearest(self.table, weight.float() / scale)] * scale).to(weight.dtype)


def _nearest(table: Tensor, values: Tensor) -> Tensor:
    """Indices of the nearest entries of a rising table."""
    return torch.bucketize(values, (table[1:] + table[:-1]) / 2)


class BFloat16WeightQuantizer(WeightQuantizer):
    """bfloat16."""

    bits = 16

    def refresh(self, weight: Tensor) -> None:
        """There is nothing to set."""

    def rounded(self, weight: Tensor) -> Tensor:
        """See `WeightQuantizer.rounded`."""
        return weight.bfloat16().to(weight.dtype)
