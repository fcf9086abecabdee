"""Rounds the biases of 8-bit layers as integer kernels do: to whole steps of the integer sum.

A kernel adds the bias to a sum of (integer input) x (integer weight), so one step is the input's scale times the
weight's, times the factor of a batch norm that is folded in. A bias between two steps would be moved by the file alone;
that moves some values over the border between two levels, each flip moves later ones, and predictions part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autocompress.compression.quantize.layers import QuantizedLayer

_MAX_STEPS = 2.0**30  # beyond, a file takes coarser steps


def snap_biases_(model: nn.Module) -> None:
    """Moves the bias of each 8-bit layer, or the shift of the batch norm behind it, to the nearest step; in place.

    Args:
        model: calibrated, in evaluation mode: the scales are those that a file would have.
    """
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, QuantizedLayer) and layer.input_grid:
                _snap(layer)


def _snap(layer: QuantizedLayer) -> None:
    (grid,) = layer.input_grid
    step = grid.step_size().double() * layer.weight_quantizers["weight"].scale.double()  # type: ignore[operator]
    bias = layer.bias
    assert bias is None or isinstance(bias, Tensor)
    if not layer.norm:
        if bias is not None:
            bias.copy_(_nearest(bias.double(), step))
        return
    (norm,) = layer.norm
    assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
    factor = (norm.running_var.double() + float(norm.eps)).rsqrt()  # type: ignore[arg-type]
    if isinstance(norm.weight, Tensor):
        factor = factor * norm.weight.double()
    shift = ((0.0 if bias is None else bias.double()) - norm.running_mean.double()) * factor
    if isinstance(norm.bias, Tensor):
        shift = shift + norm.bias.double()
        norm.bias.add_(_nearest(shift, step * factor.abs()) - shift)
    else:
        norm.running_mean.sub_((_nearest(shift, step * factor.abs()) - shift) / factor)


def _nearest(value: Tensor, step: Tensor) -> Tensor:
    """The nearest multiple of the step; the value itself where steps are too small to count."""
    return torch.where(value.abs() < _MAX_STEPS * step, (value / step).round() * step, value)
