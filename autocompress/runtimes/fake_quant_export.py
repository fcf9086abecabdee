"""Prepares a rounded model for an exporter: weights as they are stored, one cheap op where activations are rounded.

Tracing what the quantizers compute takes most of an export; the result is known before. The copy holds each weight at
its rounded value, so that the file's integers follow from it exactly, and the quantizers aside.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.compression.quantize import QuantizedLayer
from autocompress.compression.quantize.activations import ActivationQuantizer, BFloat16Activations
from autocompress.compression.quantize.own_forward import InterceptedLayer
from autocompress.compression.quantize.weights import PerChannelInt8Quantizer, WeightQuantizer
from autocompress.task import Inputs, call_model

_LEVEL_MAX = 255


@functools.cache
def _register_rounding_shape() -> torch.library.Library:
    """Registers the output shape of torch's rounding op, which torch knows only where sizes are numbers."""

    def shapes(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)

    library = torch.library.Library("aten", "IMPL", "Meta")  # kept for as long as the process lives
    library.impl("fake_quantize_per_tensor_affine_cachemask", shapes)
    return library


@dataclass(frozen=True)
class MarkedWeight:
    """A weight as a file stores it.

    Attributes:
        quantizer: says how.
        rounded: its values, as in the layer.
        integer: the layer's input is rounded to integers too, here or, of recurrent layers, by the engine.
    """

    quantizer: WeightQuantizer
    rounded: Tensor
    integer: bool


MarkedWeights = dict[str, dict[str, MarkedWeight]]
"""Layer path -> weight name -> the weight."""


class _Stored(nn.Module):
    """Stands for a weight's quantizer where the weight is at its stored value already."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight

    def refresh(self, weight: Tensor) -> None:
        """There is nothing to follow."""


class _Mark(nn.Module):
    """Stands for an activation quantizer: one op with constant scale and zero point."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self._scale, self._zero_point = float(quantizer.step_size().detach()), int(quantizer.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        marked: Tensor = torch.fake_quantize_per_tensor_affine(x, self._scale, self._zero_point, 0, _LEVEL_MAX)
        return marked


def marked_copy(
    student: nn.Module, example_inputs: Inputs, dynamic_lstm: bool = False
) -> tuple[nn.Module, MarkedWeights]:
    """A copy in evaluation mode whose weights hold their stored values, and how each is stored.

    With `dynamic_lstm` the engine's kernel rounds what 8-bit LSTMs read; else the file's operations do.
    """
    _register_rounding_shape()
    marked = copy.deepcopy(student).eval()
    if any(isinstance(layer, InterceptedLayer) and layer.computed_weight for layer in marked.modules()):
        with torch.no_grad():
            call_model(marked, example_inputs)  # computes the weights
    weights: MarkedWeights = {}
    for path, layer in list(marked.named_modules()):
        if isinstance(layer, QuantizedLayer):
            weights[path] = _round_weights_(layer)
            if dynamic_lstm and layer.reads_dynamically:
                layer.input_quantizer = None
    for layer in list(marked.modules()):
        for name, child in list(layer.named_children()):
            if isinstance(child, ActivationQuantizer):
                setattr(layer, name, _Mark(child))
            elif isinstance(child, BFloat16Activations):
                setattr(layer, name, nn.Identity())
    return marked, weights


def _own_weight(layer: QuantizedLayer, name: str) -> Tensor:
    """A parameter, or the one that stands in place of a computed weight."""
    if isinstance(layer, InterceptedLayer) and layer.computed_weight:
        assert layer.seen_weight is not None
        layer.stored_weight = nn.Parameter(layer.seen_weight.clone(), requires_grad=False)
        return layer.stored_weight
    weight: Tensor = getattr(layer, name)
    return weight


def _round_weights_(layer: QuantizedLayer) -> dict[str, MarkedWeight]:
    weights: dict[str, MarkedWeight] = {}
    for name, quantizer in list(layer.weight_quantizers.items()):
        assert isinstance(quantizer, WeightQuantizer)
        weight = _own_weight(layer, name)
        weight.data = quantizer.rounded(weight.detach()).detach()
        # a reader of 8-bit values may have its input rounded by the block around it
        integer = isinstance(quantizer, PerChannelInt8Quantizer) and (layer.reads_integers or layer.reads_dynamically)
        weights[name] = MarkedWeight(quantizer, weight.data, integer)
        layer.weight_quantizers[name] = _Stored()
    return weights
