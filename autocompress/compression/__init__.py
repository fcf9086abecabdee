"""Compresses a model as a candidate says; the result is a plain `nn.Module`."""

from autocompress.compression.calibration_stats import CalibrationStats
from autocompress.compression.importance import CRITERIA, criterion_named
from autocompress.compression.low_rank import merge
from autocompress.compression.penalty import GroupLasso, l1_penalty
from autocompress.compression.pipeline import RebuildOptions, compress, rebuild, resolve
from autocompress.compression.quantize import delay_rounding_, is_quantized, learn_scales_, snap_biases_
from autocompress.compression.recipe import Recipe
from autocompress.compression.sparsify import sparse_saving_bytes, sparse_weights

__all__ = [
    "CRITERIA",
    "CalibrationStats",
    "GroupLasso",
    "RebuildOptions",
    "Recipe",
    "compress",
    "criterion_named",
    "delay_rounding_",
    "is_quantized",
    "l1_penalty",
    "learn_scales_",
    "merge",
    "rebuild",
    "resolve",
    "snap_biases_",
    "sparse_saving_bytes",
    "sparse_weights",
]
