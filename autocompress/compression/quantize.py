"""Replaces layers by 8-bit counterparts: the rounding of an integer kernel, simulated so that it can be trained.

Scheme (Jacob et al. 2018, arXiv:1712.05877): weights int8, symmetric, one scale per output channel; activations uint8,
asymmetric, one scale per tensor. Gradients pass straight through the rounding (Bengio et al. 2013, arXiv:1308.3432).
Where a quantizer stands follows the integer kernels: a convolution with its batch norm and ReLU is one unit, whose
input, weight and output are quantized; an output that only feeds quantized layers is covered by their input quantizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import CompressionError
from autocompress.graph import Layer
from autocompress.task import Inputs, call_model

INT8_BITS = 8
_WEIGHT_MAX = 127  # symmetric: -128 is never used, so that a sign flip (a negative batch-norm scale) stays exact
_ACT_MAX = 255
_RANGE_MOMENTUM = 0.05


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to 256 levels between the ends of an observed range that always contains zero.

    Args:
        non_negative: clamp the range at zero from below, because a ReLU follows.

    In calibration the range grows to what is seen; in training it follows by a moving average; else it is fixed.
    """

    low: Tensor
    high: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, non_negative: bool = False) -> None:
        super().__init__()
        self.non_negative = non_negative
        self.calibrating = False
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`, every value on the grid; `x` itself while calibrating."""
        if self.calibrating or self.training:
            self._observe(x.detach())
        if self.calibrating:
            return x
        if torch.compiler.is_exporting():  # the op that exporters know; several times slower to run
            rounded: Tensor = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, _ACT_MAX)
        else:
            rounded = _StraightThrough.apply(x, self.scale, self.zero_point)  # type: ignore[no-untyped-call]
        return rounded

    def _observe(self, x: Tensor) -> None:
        # read in memory order: a reduction over channels-last memory in logical order is nine times slower
        in_order = x.permute(0, 2, 3, 1) if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) else x
        low, high = torch.aminmax(in_order)
        low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
        if self.non_negative:
            low = torch.zeros_like(low)
        if self.calibrating:
            self.low.copy_(torch.minimum(self.low, low))
            self.high.copy_(torch.maximum(self.high, high))
        else:
            self.low.lerp_(low, _RANGE_MOMENTUM)
            self.high.lerp_(high, _RANGE_MOMENTUM)
        width = self.high - self.low
        if not bool(torch.isfinite(width)):
            raise CompressionError(
                "activations must be finite to be quantized, but a layer got NaN or infinity; "
                "check the calibration batches and the model's weights"
            )
        self.scale.copy_(torch.where(width > 0, width / _ACT_MAX, torch.ones_like(width)))
        self.zero_point.copy_(torch.round(-self.low / self.scale).clamp(0, _ACT_MAX).to(torch.int32))


class _StraightThrough(torch.autograd.Function):
    """Rounds to the grid in the input's own type, and passes gradients unchanged.

    In bfloat16 (a fine-tune under autocast) a level above 128 may be off by one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        low = -float(zero_point)
        return x.mul(1 / float(scale)).round_().clamp_(low, low + _ACT_MAX).mul_(float(scale))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


class _WeightQuantizer(nn.Module):
    """One int8 scale per output channel of a weight, taken from the weight itself."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(n_channels))
        self.register_buffer("zero_point", torch.zeros(n_channels, dtype=torch.int32))

    def refresh(self, weight: Tensor) -> None:
        """Scale = largest magnitude of the channel / 127; an all-zero channel keeps scale 1."""
        peak = weight.detach().float().flatten(1).abs().amax(1)
        self.scale.copy_(torch.where(peak > 0, peak / _WEIGHT_MAX, torch.ones_like(peak)))

    def forward(self, weight: Tensor) -> Tensor:
        rounded: Tensor = torch.fake_quantize_per_channel_affine(
            weight, self.scale, self.zero_point, 0, -_WEIGHT_MAX - 1, _WEIGHT_MAX
        )
        return rounded


class QuantizedConv2d(nn.Conv2d):
    """A `Conv2d` whose input, weight and (where set) output are rounded as the int8 kernel rounds them."""

    input_quantizer: ActivationQuantizer
    weight_quantizer: _WeightQuantizer
    output_quantizer: ActivationQuantizer | None

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as `nn.Conv2d`."""
        if self.training:
            self.weight_quantizer.refresh(self.weight)
        y: Tensor = self._conv_forward(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)
        return y if self.output_quantizer is None else self.output_quantizer(y)

    def train(self, mode: bool = True) -> QuantizedConv2d:
        """Leaving training fixes the weight's scale, so that evaluation and export see constants."""
        self.weight_quantizer.refresh(self.weight)
        super().train(mode)
        return self


class QuantizedLinear(nn.Linear):
    """A `Linear` whose input, weight and (where set) output are rounded as the int8 kernel rounds them."""

    input_quantizer: ActivationQuantizer
    weight_quantizer: _WeightQuantizer
    output_quantizer: ActivationQuantizer | None

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as `nn.Linear`."""
        if self.training:
            self.weight_quantizer.refresh(self.weight)
        y = nn.functional.linear(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)
        return y if self.output_quantizer is None else self.output_quantizer(y)

    def train(self, mode: bool = True) -> QuantizedLinear:
        """Leaving training fixes the weight's scale, so that evaluation and export see constants."""
        self.weight_quantizer.refresh(self.weight)
        super().train(mode)
        return self


class QuantizedBatchNorm2d(nn.BatchNorm2d):
    """A `BatchNorm2d` at the end of a quantized unit: its output is rounded."""

    output_quantizer: ActivationQuantizer

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as `nn.BatchNorm2d`."""
        rounded: Tensor = self.output_quantizer(super().forward(x))
        return rounded


_Quantized = QuantizedConv2d | QuantizedLinear | QuantizedBatchNorm2d
_COUNTERPART: dict[type[nn.Module], type[_Quantized]] = {
    nn.Conv2d: QuantizedConv2d,
    nn.Linear: QuantizedLinear,
    nn.BatchNorm2d: QuantizedBatchNorm2d,
}


def quantize_(model: nn.Module, layers: Iterable[Layer], bits: Mapping[str, int]) -> None:
    """Replaces the named layers of `model` by 8-bit counterparts, in place; `calibrate_` must follow.

    Args:
        model: after pruning and factorizing; a factorized layer is a `Sequential` of two, both become 8-bit.
        layers: the layers of the uncompressed model's graph, which say what stands next to what.
        bits: layer path -> 8. Other layers stay as they are.

    Raises:
        CompressionError: a width other than 8, or a layer type without an 8-bit counterpart.
    """
    for path, width in bits.items():
        if width != INT8_BITS:
            raise CompressionError(f"weight_bits must be 8 or 32 here, but layer {path!r} has {width}")
    for layer in layers:
        if layer.path not in bits:
            continue
        parts = list(_parts(model, layer.path))
        for path in parts:
            _to_counterpart(model, path)
        if layer.kind == "linear" or (layer.feeds_only_layers and all(reader in bits for reader in layer.feeds)):
            continue  # a float output costs an integer linear nothing; or the readers' input quantizers stand there
        end = layer.norm if layer.norm is not None else parts[-1]
        if layer.norm is not None:
            _to_counterpart(model, end)
        model.get_submodule(end).output_quantizer = ActivationQuantizer(non_negative=layer.relu)


def calibrate_(model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Sets every activation range of `model` to the extremes seen on `batches`, in evaluation mode, in place.

    Raises:
        CompressionError: `batches` is empty, or activations are not finite.
    """
    was_training = model.training
    model.eval()
    n_batches = 0
    with torch.no_grad(), _calibrating(model):
        for inputs in batches:
            n_batches += 1
            call_model(model, inputs)
    model.train(was_training)
    if n_batches == 0:
        raise CompressionError(
            "8-bit layers need at least one calibration batch, but got none; pass `calibration=batches`"
        )


def is_quantized(model: nn.Module) -> bool:
    """True when any layer of `model` is 8-bit."""
    return any(isinstance(module, ActivationQuantizer) for module in model.modules())


@contextmanager
def _calibrating(model: nn.Module) -> Iterator[None]:
    quantizers = [module for module in model.modules() if isinstance(module, ActivationQuantizer)]
    for quantizer in quantizers:
        quantizer.low.zero_()
        quantizer.high.zero_()
        quantizer.calibrating = True
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.calibrating = False


def _parts(model: nn.Module, path: str) -> Iterator[str]:
    """The layer itself, or the layers of the `Sequential` that a factorized layer has become."""
    module = model.get_submodule(path)
    if isinstance(module, nn.Sequential):
        yield from (f"{path}.{name}" for name, _ in module.named_children())
    else:
        yield path


def _to_counterpart(model: nn.Module, path: str) -> None:
    """Swaps the module at `path` for its 8-bit class, which adds quantizers and keeps parameters, buffers and hooks."""
    module = model.get_submodule(path)
    counterpart = _COUNTERPART.get(type(module))
    if counterpart is None:
        known = ", ".join(kind.__name__ for kind in _COUNTERPART)
        raise CompressionError(
            f"8 bits are for {known}, but {path!r} is a {type(module).__name__}; leave it at 32 bits"
        )
    swapped = counterpart.__new__(counterpart)
    swapped.__dict__.update(module.__dict__)
    for name in ("_parameters", "_buffers", "_modules"):
        swapped.__dict__[name] = dict(module.__dict__[name])
    if isinstance(swapped, QuantizedConv2d | QuantizedLinear):
        swapped.input_quantizer = ActivationQuantizer()
        swapped.weight_quantizer = _WeightQuantizer(swapped.weight.shape[0])
        swapped.weight_quantizer.refresh(swapped.weight)
        swapped.output_quantizer = None
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, swapped)
