"""Rounds layers as the target's kernels or files do: the student's accuracy is the file's, and it can be trained."""

from __future__ import annotations

from autocompress.compression.quantize.biases import snap_biases_
from autocompress.compression.quantize.calibration import (
    calibrate_,
    correct_bias_,
    delay_rounding_,
    is_quantized,
    learn_scales_,
)
from autocompress.compression.quantize.integer_ops import Surroundings
from autocompress.compression.quantize.layers import QuantizedLayer, stored_bits
from autocompress.compression.quantize.placement import WeightGrid, quantize_, rounded, without_rounding_
from autocompress.compression.quantize.ranges import RANGES

__all__ = [
    "RANGES",
    "QuantizedLayer",
    "Surroundings",
    "WeightGrid",
    "calibrate_",
    "correct_bias_",
    "delay_rounding_",
    "is_quantized",
    "learn_scales_",
    "quantize_",
    "rounded",
    "snap_biases_",
    "stored_bits",
    "without_rounding_",
]
