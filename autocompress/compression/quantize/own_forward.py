"""Rounds layers and norms with a forward of their own, or a computed weight, at the call of torch's function."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autocompress.compression.quantize.layers import NORMS, QuantizedLayer, QuantizedNorm
from autocompress.compression.quantize.weights import WeightQuantizer

_CALLS = frozenset({torch.conv1d, torch.conv2d, F.linear})
_NORM_CALLS = frozenset({torch.batch_norm, F.batch_norm})


class InterceptedLayer(QuantizedLayer):
    """A rounded layer that keeps its own forward: what that hands to torch's convolution or product is rounded there.

    Attributes:
        computed_weight: the weight is computed from the parameters in each forward; scales follow it there.
        seen_weight: the computed weight of the last forward in evaluation mode.
        stored_weight: stands in place of the computed weight while a file is written.
    """

    computed_weight: bool
    seen_weight: Tensor | None
    stored_weight: Tensor | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Shapes as the class's own forward."""
        with _RoundedCall(self):
            return super().forward(*args, **kwargs)

    def refresh_weights(self) -> None:
        """Sets scales from the weight; those of a computed weight follow in the next forward."""
        if not self.computed_weight:
            super().refresh_weights()

    def rounded_operand(self, weight: Tensor) -> Tensor:
        """The weight of the call, rounded; same shape."""
        if not self.computed_weight:
            return self.rounded_weight()
        if self.stored_weight is not None:
            return self.stored_weight
        quantizer = self.weight_quantizers["weight"]
        assert isinstance(quantizer, WeightQuantizer)
        if self.training and quantizer.through:
            return weight
        if not torch.compiler.is_exporting():
            quantizer.refresh(weight)
            self.seen_weight = None if self.training else weight.detach()
        rounded: Tensor = quantizer(weight)
        return rounded


class _RoundedCall(TorchFunctionMode):
    """Hands the calls of one layer's forward to the layer."""

    def __init__(self, layer: InterceptedLayer) -> None:
        super().__init__()
        self._layer = layer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _CALLS:
            return func(*args, **kwargs)
        given = list(args)
        x = given.pop(0) if given else kwargs.pop("input")
        weight = given.pop(0) if given else kwargs.pop("weight")
        layer = self._layer
        return layer.rounded_output(func(layer.rounded_input(x), layer.rounded_operand(weight), *given, **kwargs))


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that an intercepted layer was made from."""
    return next(kind for kind, rounded in _CLASSES.items() if rounded is type(module))


_CLASSES: dict[type[nn.Module], type[InterceptedLayer]] = {}


def intercepted(kind: type[nn.Module]) -> type[InterceptedLayer]:
    """The rounded counterpart of a class; made at first use."""
    if kind not in _CLASSES:
        name = f"Quantized{kind.__name__}"
        _CLASSES[kind] = type(name, (InterceptedLayer, kind), {"__doc__": "A rounded layer."})
    return _CLASSES[kind]


class InterceptedNorm(QuantizedNorm):
    """A batch norm that keeps its own forward (timm's norm with activation): what torch's norm gives is rounded."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes as the class's own forward."""
        with _RoundedNorm(self):
            result: Tensor = super(QuantizedNorm, self).forward(x)
            return result


class _RoundedNorm(TorchFunctionMode):
    """Rounds what the norm of one forward gives."""

    def __init__(self, norm: InterceptedNorm) -> None:
        super().__init__()
        self._norm = norm

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return self._norm.output_quantizer(result) if func in _NORM_CALLS else result


def quantized_norm(kind: type[nn.Module]) -> type[QuantizedNorm]:
    """The counterpart of a norm's class; made at first use for a subclass of torch's."""
    if kind not in NORMS:
        NORMS[kind] = type(f"Quantized{kind.__name__}", (InterceptedNorm, kind), {"__doc__": "Its norm is rounded."})
    return NORMS[kind]
