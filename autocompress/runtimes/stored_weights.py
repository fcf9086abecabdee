"""Replaces the float weights of an exported graph by their stored forms: integers, packed codes, bfloat16."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
import torch
from torch import Tensor

from autocompress.compression.quantize.weights import ChannelScales, GroupScales, WeightQuantizer
from autocompress.errors import ExportError
from autocompress.runtimes.marks import MarkedWeight, MarkedWeights
from autocompress.runtimes.node_names import module_of
from autocompress.runtimes.proto_graph import ProtoGraph
from autocompress.runtimes.weight_forms import Array, Writer, codes_of, folded_form, group_codes_of

_OPSET_WITH_INT4 = 21
_OPS = ("Conv", "Gemm", "MatMul", "Gather", "LSTM", "GRU")
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
"""The file's order of a recurrent layer's gates, as places in torch's order."""


def store_weights_(model: onnx.ModelProto, weights: MarkedWeights) -> None:
    """Writes each rounded weight in its own form; in place.

    Args:
        model: as the exporter wrote it, its nodes named by module.
        weights: of the marked copy that was exported.

    Raises:
        ExportError: the graph has no node that reads one of the weights.
    """
    graph = ProtoGraph(model.graph)
    nodes: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.proto.node:
        if node.op_type in _OPS:
            nodes[module_of(node.name)].append(node)
    for path, marked in weights.items():
        readers = [node for node in nodes[path] if _reads_constant(graph, node)]
        if not readers:
            raise ExportError(f"the exported graph has no weight of the rounded layer {path!r}; leave it at 32 bits")
        if readers[0].op_type in _GATES:
            for k, node in enumerate(readers):
                _store_recurrent(graph, node, marked, k, f"{path}_l{k}")
        else:
            _store(graph, readers[0], marked["weight"], path)
    graph.drop_unused()
    if any(item.data_type == onnx.TensorProto.UINT4 for item in graph.proto.initializer):
        for opset in model.opset_import:
            opset.version = max(opset.version, _OPSET_WITH_INT4) if opset.domain == "" else opset.version


def _weight_place(node: onnx.NodeProto) -> int:
    return 0 if node.op_type == "Gather" else 1


def _reads_constant(graph: ProtoGraph, node: onnx.NodeProto) -> bool:
    name = node.input[_weight_place(node)]
    return name in graph.values and graph.values[name].dtype == np.float32


def _store(graph: ProtoGraph, node: onnx.NodeProto, marked: MarkedWeight, path: str) -> None:
    quantizer, weight = marked.quantizer, marked.rounded
    writer, place = Writer(graph, node, f"{path}.weight"), _weight_place(node)
    written = torch.from_numpy(graph.values[node.input[place]].copy())
    if node.op_type == "MatMul":
        written = written.T
    factor = _row_factors(written, weight)
    if marked.integer and isinstance(quantizer, ChannelScales) and node.op_type != "Gather":
        stored = _integer_form(writer, quantizer, weight, factor, transposed=node.op_type == "MatMul")
    elif node.op_type == "Gather" and isinstance(quantizer, ChannelScales):
        _store_rows(graph, node, writer, quantizer, weight)
        return
    elif node.op_type in ("Gemm", "MatMul") and _has_kernel_form(quantizer, weight):
        node = _as_matmul(graph, node)
        stored = _kernel_form(Writer(graph, node, f"{path}.weight"), quantizer, weight)
    elif node.op_type == "Gather" and isinstance(quantizer, GroupScales) and _has_kernel_form(quantizer, weight):
        codes, scale, zero = group_codes_of(quantizer, weight)
        flat = writer.uint4(codes.reshape(len(codes), -1)[:, : weight.shape[1]])
        stored = writer.node(
            "DequantizeLinear",
            flat,
            writer.constant(scale),
            writer.uint4(zero),
            axis=1,
            block_size=quantizer.group_size,
        )
    else:
        stored = folded_form(writer, quantizer, weight, factor)
        if node.op_type == "MatMul":
            stored = writer.node("Transpose", stored, perm=[1, 0])
    graph.replace_reads(node, _weight_place(node), stored)


def _has_kernel_form(quantizer: WeightQuantizer, weight: Tensor) -> bool:
    """Weight-only kernels take int8 by channel, and int4 in groups that are all full."""
    if isinstance(quantizer, GroupScales):
        return weight.shape[1] % quantizer.group_size == 0
    return isinstance(quantizer, ChannelScales)


def _row_factors(written: Tensor, rounded: Tensor) -> Array:
    """What the exporter multiplied each row by when it folded a batch norm: 1 where a row is zero."""
    a, b = written.double().flatten(1), rounded.double().flatten(1)
    power = b.square().sum(1)
    return torch.where(power > 0, (a * b).sum(1) / power.clamp(min=1e-300), torch.ones_like(power)).numpy()


def _integer_form(writer: Writer, quantizer: ChannelScales, weight: Tensor, factor: Array, transposed: bool) -> str:
    """DequantizeLinear of int8 codes, one scale per output channel, all scales positive."""
    codes, scale = codes_of(quantizer, weight)
    signs = np.where(factor < 0, -1, 1).astype(np.int8)
    codes = codes * signs.reshape(-1, *[1] * (weight.ndim - 1))
    steps = np.maximum(scale * np.abs(factor), np.finfo(np.float32).tiny).astype(np.float32)
    zeros = np.zeros(len(steps), np.int8)
    axis = 1 if transposed else 0
    inputs = (codes.T if transposed else codes, steps, zeros)
    return writer.node("DequantizeLinear", *(writer.constant(value) for value in inputs), axis=axis)


def _kernel_form(writer: Writer, quantizer: WeightQuantizer, weight: Tensor) -> str:
    """What weight-only kernels read: the matrix (n_inputs, n_outputs), by column or in groups of its rows."""
    if isinstance(quantizer, ChannelScales):
        return _integer_form(writer, quantizer, weight, np.ones(len(weight)), transposed=True)
    assert isinstance(quantizer, GroupScales)
    codes, scale, zero = group_codes_of(quantizer, weight)
    matrix = codes.reshape(len(codes), -1)[:, : weight.shape[1]].T
    names = writer.uint4(matrix), writer.constant(scale.T), writer.uint4(zero.T)
    return writer.node("DequantizeLinear", *names, axis=0, block_size=quantizer.group_size)


def _as_matmul(graph: ProtoGraph, node: onnx.NodeProto) -> onnx.NodeProto:
    """The product of a Gemm as a node of its own, with its bias added behind: weight-only kernels are MatMuls."""
    if node.op_type == "MatMul":
        return node
    if len(node.input) > 2:
        product = onnx.helper.make_node("MatMul", list(node.input[:2]), [f"{node.output[0]}_product"], name=node.name)
        graph.insert_before(node, product)
        added = onnx.helper.make_node(
            "Add", [product.output[0], node.input[2]], [node.output[0]], name=f"{node.name}_bias"
        )
        graph.substitute(node, added)
        matmul: onnx.NodeProto = graph.producer[product.output[0]]
        return matmul
    node.op_type = "MatMul"
    del node.attribute[:]
    return node


def _store_rows(
    graph: ProtoGraph, node: onnx.NodeProto, writer: Writer, quantizer: ChannelScales, weight: Tensor
) -> None:
    """An embedding looks up int8 rows and their scales: nothing but the rows in use becomes float."""
    codes, scale = codes_of(quantizer, weight)
    rows = writer.node("Gather", writer.constant(codes), node.input[1], axis=0)
    steps = writer.node("Gather", writer.constant(scale[:, None].astype(np.float32)), node.input[1], axis=0)
    plain = writer.node("Cast", rows, to=onnx.TensorProto.FLOAT)
    graph.substitute(node, onnx.helper.make_node("Mul", [plain, steps], [node.output[0]], name=node.name))


def _store_recurrent(
    graph: ProtoGraph, node: onnx.NodeProto, marked: dict[str, MarkedWeight], k: int, path: str
) -> None:
    """Both weights of one recurrent node; a second direction is stacked behind the first."""
    for place, kind in ((1, "ih"), (2, "hh")):
        names = [name for name in (f"weight_{kind}_l{k}", f"weight_{kind}_l{k}_reverse") if name in marked]
        writer = Writer(graph, node, f"{path}_{kind}")
        parts = []
        for name in names:
            weight = _gates_in_order(node.op_type, marked[name].rounded)
            quantizer = _quantizer_in_order(node.op_type, marked[name].quantizer)
            rows = folded_form(writer, quantizer, weight, np.ones(len(weight)))
            parts.append(writer.node("Unsqueeze", rows, writer.constant(np.array([0], np.int64))))
        graph.replace_reads(node, place, parts[0] if len(parts) == 1 else writer.node("Concat", *parts, axis=0))


def _gates_in_order(op: str, rows: Tensor) -> Tensor:
    gates = rows.chunk(len(_GATES[op]))
    return torch.cat([gates[i] for i in _GATES[op]])


def _quantizer_in_order(op: str, quantizer: WeightQuantizer) -> WeightQuantizer:
    """The same quantizer for rows in the file's order."""
    for name, value in quantizer.named_buffers():
        if name != "table" and value.shape[0] > 1:
            setattr(quantizer, name, _gates_in_order(op, value))
    return quantizer
