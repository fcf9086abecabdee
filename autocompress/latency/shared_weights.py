"""Lets ONNX files share one file of random weights: latency does not depend on the values, and small files travel."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

WEIGHTS_FILE = "weights.bin"
_SMALLEST_BYTES = 1024
_ALIGNMENT = 64
_SHARED_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8)


def write_shared(model: onnx.ModelProto, file: Path) -> int:
    """Writes a model whose large tensors lie in `weights.bin` beside the file, one after the other.

    Small ones (scales, zero points, shapes, biases) keep their values. No two tensors of one file share a place, so
    that caches see as many bytes as with the true weights.

    Returns:
        Bytes of `weights.bin` that the file needs.
    """
    shared = onnx.ModelProto()
    shared.CopyFrom(model)
    end = 0
    for tensor in shared.graph.initializer:
        n_bytes = len(tensor.raw_data)
        if n_bytes < _SMALLEST_BYTES or tensor.data_type not in _SHARED_TYPES:
            continue
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS_FILE), ("offset", end), ("length", n_bytes)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        end += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
    file.write_bytes(shared.SerializeToString())
    return end
