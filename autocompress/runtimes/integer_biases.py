"""Stores the biases of layers whose inputs and weights are integers as int32, in steps of the integer sum.

Integer kernels add the bias to the int32 accumulator, so its scale is (input scale) x (weight scale).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from autocompress.runtimes.onnx_graph import ProtoGraph

_Array = NDArray[Any]
_BIAS_LIMIT = 2.0**30  # in int32, with room for the sum of products
_SMALLEST_SCALE = 1e-30


def store_integer_biases_(model: onnx.ModelProto) -> None:
    """Stores as int32 the bias of every Conv and Gemm whose input and weight are dequantized integers; in place."""
    graph = ProtoGraph(model.graph)
    for node in list(graph.proto.node):
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
            _quantize_bias(graph, node)
    graph.drop_unused()


def _quantize_bias(graph: ProtoGraph, node: onnx.NodeProto) -> None:
    source, dequantize = (graph.producer.get(name) for name in node.input[:2])
    if source is None or source.op_type != "DequantizeLinear" or node.input[2] not in graph.values:
        return
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in graph.values:
        return
    bias = graph.values[node.input[2]].astype(np.float64)
    input_scale = graph.values[source.input[1]].astype(np.float64)
    weight_scale = _with_room_for_bias(graph, dequantize, bias / input_scale, node.output[0])
    scale = np.broadcast_to(input_scale * weight_scale, bias.shape)
    stored = np.rint(bias / scale).astype(np.int32)
    prefix = node.output[0]
    bias_node = onnx.helper.make_node(
        "DequantizeLinear",
        [
            graph.add(f"{prefix}_bias_int32", stored),
            graph.add(f"{prefix}_bias_scale", scale.astype(np.float32)),
            graph.add(f"{prefix}_bias_zero", np.zeros_like(stored)),
        ],
        [f"{prefix}_bias_float"],
        axis=0,
    )
    graph.insert_before(node, bias_node)
    node.input[2] = bias_node.output[0]


def _with_room_for_bias(graph: ProtoGraph, dequantize: onnx.NodeProto, bias: _Array, prefix: str) -> _Array:
    """The weight's scales, coarser where a bias would not fit int32.

    There the weights are negligible against the bias (a norm scale that has decayed to almost zero) or are all zero,
    so they become zero and the scale follows from the bias alone.

    Args:
        graph: the graph.
        dequantize: of the weight, read by one node only.
        bias: in units of the input's scale, shape (n_channels,).
        prefix: for names of new values.
    """
    stored, scale = graph.values[dequantize.input[0]], graph.values[dequantize.input[1]].astype(np.float64)
    by_channel = np.abs(stored.astype(np.int32)).reshape(stored.shape[0], -1).max(axis=1)
    dead = (np.abs(bias) > scale * _BIAS_LIMIT) | (by_channel == 0)
    if scale.ndim == 0 or not dead.any():
        return scale
    kept = np.where(dead.reshape(-1, *[1] * (stored.ndim - 1)), 0, stored).astype(stored.dtype)
    scale = np.where(dead, np.maximum(np.abs(bias) / _BIAS_LIMIT, _SMALLEST_SCALE), scale)
    dequantize.input[0] = graph.add(f"{prefix}_weight_kept", kept)
    dequantize.input[1] = graph.add(f"{prefix}_scale_kept", scale.astype(np.float32))
    return scale.astype(np.float32).astype(np.float64)
