"""Layers whose inputs, weights and outputs are rounded: subclasses of torch's own, with the same parameters."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.compression.quantize.activations import ActivationQuantizer, BFloat16Activations, DynamicQuantizer
from autocompress.compression.quantize.weights import WeightQuantizer


class QuantizedLayer(nn.Module):
    """Base of the rounded layers.

    Attributes:
        input_quantizer: rounds what the layer reads; None where only weights are rounded, or it is rounded before.
        weight_quantizers: rounds a weight, by its name with dots as underscores.
        output_quantizer: rounds what the layer gives; None where nothing does, or a batch norm behind it does.
        input_grid: what rounds the input to 8 bits, here or before; a tuple, so that it is no child twice, and empty
            where nothing does.
        norm: the batch norm behind, if there is one; likewise.
        reads_dynamically: what the layer reads is rounded to 8 bits, by a range found at run time. Engines with such a
            kernel round the hidden state too, which the student does not: it would have to compute each step alone.
    """

    reads_dynamically = False

    input_quantizer: ActivationQuantizer | BFloat16Activations | DynamicQuantizer | None
    weight_quantizers: nn.ModuleDict
    output_quantizer: ActivationQuantizer | None
    input_grid: tuple[ActivationQuantizer, ...]
    norm: tuple[nn.Module, ...]

    @property
    def reads_integers(self) -> bool:
        """Whether the input is rounded to 8 bits, here or before."""
        return bool(self.input_grid)

    def refresh_weights(self) -> None:
        """Sets the scales of the weights from the weights."""
        for name, quantizer in self.weight_quantizers.items():
            assert isinstance(quantizer, WeightQuantizer)
            quantizer.refresh(getattr(self, name))

    def rounded_weight(self, name: str = "weight") -> Tensor:
        """The weight as it is stored; in training its scales follow it."""
        quantizer, weight = self.weight_quantizers[name], getattr(self, name)
        if self.training:
            if quantizer.through:
                return weight  # type: ignore[no-any-return]
            quantizer.refresh(weight)  # type: ignore[operator]
        rounded: Tensor = quantizer(weight)
        return rounded

    def rounded_input(self, x: Tensor) -> Tensor:
        """The input as the kernel reads it."""
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def rounded_output(self, y: Tensor) -> Tensor:
        """The output as the kernel leaves it."""
        return y if self.output_quantizer is None else self.output_quantizer(y)

    def train(self, mode: bool = True) -> Any:
        """Leaving training fixes the weight's scale, so that evaluation and export see constants."""
        if self.training or mode:
            self.refresh_weights()
        return super().train(mode)


def stored_bits(layer: nn.Module) -> int:
    """Bits of one entry of the layer's weight in a file, without scales."""
    if not isinstance(layer, QuantizedLayer):
        return 8 * int(layer.weight.element_size())  # type: ignore[operator]
    return max(int(quantizer.bits) for quantizer in layer.weight_quantizers.values())  # type: ignore[arg-type]


class QuantizedConv1d(QuantizedLayer, nn.Conv1d):
    """A rounded `Conv1d`."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as `nn.Conv1d`."""
        return self.rounded_output(self._conv_forward(self.rounded_input(x), self.rounded_weight(), self.bias))


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """A rounded `Conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as `nn.Conv2d`."""
        return self.rounded_output(self._conv_forward(self.rounded_input(x), self.rounded_weight(), self.bias))


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """A rounded `Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as `nn.Linear`."""
        return self.rounded_output(F.linear(self.rounded_input(x), self.rounded_weight(), self.bias))


class QuantizedEmbedding(QuantizedLayer, nn.Embedding):
    """A rounded `Embedding`; rows are rounded as they are looked up."""

    def forward(self, indices: Tensor) -> Tensor:
        """Shapes as `nn.Embedding`."""
        weight = self.rounded_weight()
        return F.embedding(
            indices, weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        )


class _QuantizedRecurrent(QuantizedLayer, nn.RNNBase):
    """Computes with rounded weights in place of `_flat_weights`, which is what torch's recurrent layers read."""

    def forward(self, x: Any, hx: Any = None) -> Any:
        """Shapes as the torch layer."""
        self._update_flat_weights()  # else torch itself puts the unrounded ones back, once after weights were replaced
        kept = self._flat_weights
        x = self.rounded_input(x) if isinstance(x, Tensor) else x
        self._flat_weights = [
            self.rounded_weight(name) if name in self.weight_quantizers else getattr(self, name)
            for name in self._flat_weights_names
        ]
        try:
            return super().forward(x, hx)
        finally:
            self._flat_weights = kept


class QuantizedLSTM(_QuantizedRecurrent, nn.LSTM):
    """An `LSTM` with rounded weights."""


class QuantizedGRU(_QuantizedRecurrent, nn.GRU):
    """A `GRU` with rounded weights."""


class QuantizedNorm(nn.Module):
    """Base of batch norms at the end of a rounded unit: the output is rounded."""

    output_quantizer: ActivationQuantizer

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as the torch layer."""
        rounded: Tensor = self.output_quantizer(super().forward(x))
        return rounded


class QuantizedBatchNorm1d(QuantizedNorm, nn.BatchNorm1d):
    """A `BatchNorm1d` whose output is rounded."""


class QuantizedBatchNorm2d(QuantizedNorm, nn.BatchNorm2d):
    """A `BatchNorm2d` whose output is rounded."""


LAYERS: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Linear: QuantizedLinear,
    nn.Embedding: QuantizedEmbedding,
    nn.LSTM: QuantizedLSTM,
    nn.GRU: QuantizedGRU,
}
NORMS: dict[type[nn.Module], type[QuantizedNorm]] = {
    nn.BatchNorm1d: QuantizedBatchNorm1d,
    nn.BatchNorm2d: QuantizedBatchNorm2d,
}
