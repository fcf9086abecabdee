"""Rewrites an exported graph so that quantized weights are stored as int8 and batch norms are folded into them.

The exporter writes a fake-quantized weight as float -> QuantizeLinear -> DequantizeLinear. Stored so, the file is no
smaller and a batch norm behind the convolution stays a node of its own, which keeps the integer kernel from being
used. Folding is exact in float: one scale per output channel commutes with the norm's factor, (q s) f = q (s f).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from autocompress.runtimes.proto_graph import ProtoGraph

_Array = NDArray[Any]
_BIAS_LIMIT = 2.0**30  # in int32, with room for the sum of products
_SMALLEST_SCALE = 1e-30


def store_integer_weights_(model: onnx.ModelProto) -> None:
    """Stores quantized weights as int8 and their biases as int32, with batch norms folded into the scales; in place.

    Also strips the exporter's notes (source lines and local paths of the machine that exported) from the file.
    """
    graph = ProtoGraph(model.graph)
    for node in list(graph.proto.node):
        if node.op_type == "QuantizeLinear" and node.input[0] in graph.values:
            _quantize_initializer(graph, node)
    for node in list(graph.proto.node):
        if node.op_type == "BatchNormalization":
            _fold_batch_norm(graph, node)
    for node in list(graph.proto.node):
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
            _quantize_bias(graph, node)
    graph.drop_unused()
    strip_notes_(model)


def strip_notes_(model: onnx.ModelProto) -> None:
    """Removes documentation and metadata that the exporter wrote; they name local files and double small models."""
    for item in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ):
        del item.metadata_props[:]
        item.doc_string = ""
    del model.graph.metadata_props[:]
    del model.metadata_props[:]


def _axis(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 1)


def _per_channel(value: _Array, n_dims: int, axis: int) -> _Array:
    if value.ndim == 0:
        return value
    shape = [1] * n_dims
    shape[axis] = -1
    return value.reshape(shape)


def _quantize_initializer(graph: ProtoGraph, node: onnx.NodeProto) -> None:
    weight, scale, zero = (graph.values[name] for name in node.input[:3])
    axis = _axis(node)
    info = np.iinfo(zero.dtype)
    rounded = np.rint(weight / _per_channel(scale, weight.ndim, axis)) + _per_channel(zero, weight.ndim, axis)
    stored = graph.add(f"{node.input[0]}_int8", np.clip(rounded, info.min, info.max).astype(zero.dtype))
    for reader in graph.proto.node:
        for i, name in enumerate(reader.input):
            if name == node.output[0]:
                reader.input[i] = stored
    graph.remove(node)


def _fold_batch_norm(graph: ProtoGraph, norm: onnx.NodeProto) -> None:
    conv = graph.producer.get(norm.input[0])
    if conv is None or conv.op_type != "Conv" or graph.n_readers[norm.input[0]] != 1:
        return
    dequantize = _own_weight(graph, conv)
    if dequantize is None:
        return
    gamma, beta, mean, var = (graph.values[name] for name in norm.input[1:5])
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    factor = gamma / np.sqrt(var + epsilon)
    stored, scale = graph.values[dequantize.input[0]], graph.values[dequantize.input[1]]
    bias = graph.values[conv.input[2]] if len(conv.input) > 2 else np.zeros_like(mean)
    signs = np.sign(factor).astype(stored.dtype)
    prefix = conv.output[0]
    dequantize.input[0] = graph.add(f"{prefix}_weight", stored * _per_channel(signs, stored.ndim, 0))
    positive = np.maximum(scale * np.abs(factor), np.finfo(np.float32).tiny)
    dequantize.input[1] = graph.add(f"{prefix}_scale", positive.astype(np.float32))
    folded = graph.add(f"{prefix}_bias", ((bias - mean) * factor + beta).astype(np.float32))
    if len(conv.input) > 2:
        conv.input[2] = folded
    else:
        conv.input.append(folded)
    graph.remove(norm)
    graph.rename(conv.output[0], norm.output[0])


def _quantize_bias(graph: ProtoGraph, node: onnx.NodeProto) -> None:
    """Integer kernels add the bias to the int32 accumulator, so its scale is (input scale) x (weight scale)."""
    source = graph.producer.get(node.input[0])
    if source is None or source.op_type != "DequantizeLinear" or node.input[2] not in graph.values:
        return
    dequantize = _own_weight(graph, node)
    if dequantize is None:
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

    There the weights count for nothing beside the bias (a norm scale that has decayed to almost zero) or are all zero,
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
    kept = np.where(_per_channel(dead, stored.ndim, 0), 0, stored).astype(stored.dtype)
    scale = np.where(dead, np.maximum(np.abs(bias) / _BIAS_LIMIT, _SMALLEST_SCALE), scale)
    dequantize.input[0] = graph.add(f"{prefix}_weight_kept", kept)
    dequantize.input[1] = graph.add(f"{prefix}_scale_kept", scale.astype(np.float32))
    return scale.astype(np.float32).astype(np.float64)


def _own_weight(graph: ProtoGraph, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The DequantizeLinear of the node's stored weight, copied first where other nodes read it too."""
    dequantize: onnx.NodeProto | None = graph.producer.get(node.input[1])
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in graph.values:
        return None
    if graph.n_readers[node.input[1]] == 1:
        return dequantize
    own = onnx.NodeProto()
    own.CopyFrom(dequantize)
    own.name, own.output[0] = "", f"{node.output[0]}_weight_float"
    graph.insert_before(node, own)
    graph.n_readers[node.input[1]] -= 1
    graph.n_readers[own.output[0]] = 1
    node.input[1] = own.output[0]
    copied: onnx.NodeProto = graph.producer[own.output[0]]
    return copied
