"""Rounds activations: to 256 levels over an observed range, or to bfloat16.

The grid of Jacob et al. 2018 (arXiv:1712.05877): uint8, asymmetric, one scale per tensor; zero is always a level.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.compression.quantize.ranges import RANGES
from autocompress.compression.quantize.rounding import learned_step, replace, round_through
from autocompress.errors import CompressionError

N_LEVELS = 256
_RANGE_MOMENTUM = 0.05
_SAMPLE_SIZE = 4096
_SMALLEST_SCALE = 1e-12


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to 256 levels between the ends of an observed range that always contains zero.

    Args:
        non_negative: clamp the range at zero from below, because a ReLU follows.
        ceiling: nor does the range go beyond this, because the ReLU cuts off there. An engine leaves out a cut whose
            bounds hold the whole grid, so that the highest level must not be above by as much as a rounding error.

    In calibration it records what it sees, from which `compute_qparams` makes the range; in training the range is a
    moving average, or the scale is learned (`learn_`); else it is fixed.

    Attributes:
        applied: False where the target runtime leaves this rounding out, although its file asks for it.
        through: True where training sees the value itself, see `delay_rounding_`.
        observes: whether the range follows what training shows now.
    """

    applied = True
    through = False
    observes = True

    low: Tensor
    high: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, non_negative: bool = False, ceiling: float | None = None) -> None:
        super().__init__()
        self.non_negative = non_negative
        self.ceiling = ceiling
        self.calibrating = False
        self._notes: list[tuple[Tensor, Tensor, Tensor]] = []
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`, every value on the grid; `x` itself while calibrating."""
        if self.calibrating:
            self._note(x.detach())
            return x
        learned = isinstance(self.scale, nn.Parameter)
        if self.training and self.observes and not learned:
            self._follow(x.detach())
        if not self.applied or (self.training and self.through):
            return x
        if learned:
            return self._learned(x)
        if torch.compiler.is_exporting():  # the op that exporters know; several times slower to run
            rounded: Tensor = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, N_LEVELS - 1)
        else:
            rounded = round_through(x, self.scale, self.zero_point, N_LEVELS)
        return rounded

    def compute_qparams(self, rule: str) -> None:
        """Makes the range from the notes of calibration; a tensor that no batch reached keeps scale 1."""
        if self._notes:
            lows, highs, samples = (torch.cat(parts) for parts in zip(*self._notes, strict=True))
            low, high = RANGES[rule](lows, highs, samples, N_LEVELS)
            self._set_range(low.clamp(max=0.0), high.clamp(min=0.0))
        self._notes = []

    def step_size(self) -> Tensor:
        """The scale that is in force, shape (): a learned one within its bounds."""
        return self.scale.clamp(min=_SMALLEST_SCALE, max=self._largest_scale())

    def learn_(self) -> None:
        """Makes the scale a parameter; the zero point stays."""
        scale = self.scale.detach().clone()
        del self._buffers["scale"]
        self.scale = nn.Parameter(scale)

    def _learned(self, x: Tensor) -> Tensor:
        scale = self.step_size()
        if torch.compiler.is_exporting():
            exported: Tensor = torch.fake_quantize_per_tensor_affine(x, scale, self.zero_point, 0, N_LEVELS - 1)
            return exported
        low = -float(self.zero_point)
        return learned_step(x, scale, low, low + N_LEVELS - 1)

    def _note(self, x: Tensor) -> None:
        low, high = self._extremes(x)
        flat = x.reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLE_SIZE)].float()
        self._notes.append((low[None], high[None], self._cut(sample)))

    def _follow(self, x: Tensor) -> None:
        low, high = self._extremes(x)
        self._set_range(self.low.lerp(low, _RANGE_MOMENTUM), self.high.lerp(high, _RANGE_MOMENTUM))

    def _extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # read in memory order: a reduction over channels-last memory in logical order is nine times slower
        in_order = x.permute(0, 2, 3, 1) if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) else x
        low, high = (value.float() for value in torch.aminmax(in_order))
        is_looked_at = self.calibrating or low.device.type == "cpu"  # a look waits for an accelerator
        if is_looked_at and not bool(torch.isfinite(high - low)):
            raise CompressionError(
                "activations must be finite to be quantized, but a layer got NaN or infinity; "
                "check the calibration batches and the model's weights"
            )
        return self._cut(low.clamp(max=0.0)), self._cut(high.clamp(min=0.0))

    def _cut(self, x: Tensor) -> Tensor:
        """What the ReLU behind leaves of a value."""
        x = x.clamp(min=0.0) if self.non_negative else x
        return x if self.ceiling is None else x.clamp(max=self.ceiling)

    def _largest_scale(self) -> float | None:
        """The largest step in float32 with which the highest level is not above the ceiling."""
        if self.ceiling is None:
            return None
        n_steps = N_LEVELS - 1 - int(self.zero_point)
        step = np.float32(self.ceiling / max(n_steps, 1))
        while np.float32(n_steps) * step > np.float32(self.ceiling):
            step = np.nextafter(step, np.float32(0))
        return float(step)

    def _set_range(self, low: Tensor, high: Tensor) -> None:
        self.low.copy_(low)
        self.high.copy_(high)
        width = self.high - self.low
        self.scale.copy_(torch.where(width > 0, width / (N_LEVELS - 1), torch.ones_like(width)))
        self.zero_point.copy_(torch.round(-self.low / self.scale).clamp(0, N_LEVELS - 1).to(torch.int32))
        if self.ceiling is not None:
            self.scale.clamp_(max=self._largest_scale())


class BFloat16Activations(nn.Module):
    """Rounds a tensor to bfloat16; while a file is written, the runtime's own kernels do.

    Attributes:
        through: True where training sees the value itself, see `delay_rounding_`.
    """

    through = False

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and type as `x`."""
        if torch.compiler.is_exporting() or (self.training and self.through):
            return x
        return replace(x, x.detach().bfloat16().to(x.dtype))


class DynamicQuantizer(nn.Module):
    """Rounds each sample to 256 levels between its own ends, which are found at run time; zero is a level.

    Args:
        sample_dim: the dimension that counts samples; all others share one range.

    Attributes:
        through: True where training sees the value itself, see `delay_rounding_`.
    """

    through = False

    def __init__(self, sample_dim: int) -> None:
        super().__init__()
        self.sample_dim = sample_dim

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`; gradients pass unchanged."""
        if self.training and self.through:
            return x
        value = x.detach()
        dims = [dim for dim in range(x.ndim) if dim != self.sample_dim or x.ndim < 3]
        low = value.amin(dims, keepdim=True).clamp(max=0.0)
        high = value.amax(dims, keepdim=True).clamp(min=0.0)
        scale = ((high - low) / (N_LEVELS - 1)).clamp(min=_SMALLEST_SCALE)
        zero_point = torch.round(-low / scale)
        rounded = ((torch.round(value / scale) + zero_point).clamp(0, N_LEVELS - 1) - zero_point) * scale
        return rounded if torch.compiler.is_exporting() else replace(x, rounded)
