"""Replaces the float weights of an exported graph by their stored forms: integers, packed codes, bfloat16."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
import torch
from torch import Tensor

from autocompress.compression.quantize.weights import GroupwiseInt4Quantizer, PerChannelInt8Quantizer, WeightQuantizer
from autocompress.errors import ExportError
from autocompress.runtimes.dynamic_lstm import GATES, gates_in_order, store_dynamic_lstm_
from autocompress.runtimes.fake_quant_export import MarkedWeight, MarkedWeights
from autocompress.runtimes.node_names import module_of
from autocompress.runtimes.onnx_graph import ProtoGraph
from autocompress.runtimes.weight_packing import Array, Writer, embedded_rows, folded_form, integer_form, kernel_form

_OPSET_WITH_INT4 = 21
_OPS = ("Conv", "Gemm", "MatMul", "Gather", "LSTM", "GRU")


def store_weights_(model: onnx.ModelProto, weights: MarkedWeights, dynamic_lstm: bool = False) -> None:
    """Writes each rounded weight in its own form; in place.

    Args:
        model: as the exporter wrote it, its nodes named by module.
        weights: of the marked copy that was exported.
        dynamic_lstm: write 8-bit LSTMs as ONNX Runtime's own DynamicQuantizeLSTM, which only its CPU kernels know.

    Raises:
        ExportError: the graph has no node that reads one of the weights.
    """
    graph = ProtoGraph(model.graph)
    nodes: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.proto.node:
        if node.op_type in _OPS:
            nodes[module_of(node.name)].append(node)
    for path, marked in weights.items():
        layer = nodes[path]
        if not layer:
            continue  # small, and read at places that never change: the exporter wrote its result, which is rounded
        if "weight" not in marked:
            recurrent = [node for node in layer if node.op_type in GATES]
            if not (dynamic_lstm and store_dynamic_lstm_(model, graph, recurrent, marked, path)):
                _store_recurrent(graph, recurrent, marked, path)
            continue
        readers = [node for node in layer if _written(graph, node) is not None]
        if not readers:
            raise ExportError(f"the exported graph has no weight of the rounded layer {path!r}; leave it at 32 bits")
        _store(graph, readers[0], marked["weight"], path)
    graph.drop_unused()
    if any(item.data_type == onnx.TensorProto.UINT4 for item in graph.proto.initializer):
        for opset in model.opset_import:
            opset.version = max(opset.version, _OPSET_WITH_INT4) if opset.domain == "" else opset.version


def _weight_place(node: onnx.NodeProto) -> int:
    return 0 if node.op_type == "Gather" else 1


def _written(graph: ProtoGraph, node: onnx.NodeProto) -> Tensor | None:
    """The float weight that a node reads, in torch's order of dimensions; None where it reads none."""
    name = node.input[_weight_place(node)]
    source = graph.producer.get(name)
    turned = source is not None and source.op_type == "Transpose"
    value = graph.values.get(source.input[0] if turned and source is not None else name)
    if value is None or value.dtype != np.float32:
        return None
    # large weights keep their Transpose as a node, small ones were turned by the exporter
    weight = torch.from_numpy(value.copy())
    return weight.T if node.op_type == "MatMul" and not turned else weight


def _store(graph: ProtoGraph, node: onnx.NodeProto, marked: MarkedWeight, path: str) -> None:
    quantizer, weight, integer = marked.quantizer, marked.rounded, marked.integer
    writer, name = Writer(graph, node, f"{path}.weight"), f"{path}.weight"
    written = _written(graph, node)
    assert written is not None
    factor = _row_factors(written, weight)
    if node.op_type == "Gather" and _has_kernel_form(quantizer, weight):
        graph.substitute(node, embedded_rows(writer, quantizer, weight, node))
        return
    if integer and isinstance(quantizer, PerChannelInt8Quantizer):
        if node.op_type == "MatMul" and _quantized_input(graph, node) is not None:
            node = _as_gemm(graph, node, writer)
        stored = integer_form(
            Writer(graph, node, f"{name}_codes"), quantizer, weight, factor, transposed=node.op_type == "MatMul"
        )
    elif node.op_type in ("Gemm", "MatMul") and _has_kernel_form(quantizer, weight):
        node = _as_matmul(graph, node)
        stored = kernel_form(Writer(graph, node, name), quantizer, weight)
    else:
        stored = folded_form(writer, quantizer, weight, factor)
        if node.op_type == "MatMul":
            stored = writer.node("Transpose", stored, perm=[1, 0])
    node.input[_weight_place(node)] = stored


def _has_kernel_form(quantizer: WeightQuantizer, weight: Tensor) -> bool:
    """Weight-only kernels take int8 by channel, and int4 in groups that are all full."""
    if isinstance(quantizer, GroupwiseInt4Quantizer):
        return weight.shape[1] % quantizer.group_size == 0
    return isinstance(quantizer, PerChannelInt8Quantizer)


def _row_factors(written: Tensor, rounded: Tensor) -> Array:
    """The factor by which the exporter scaled each row when it folded a batch norm: 1 where a row is zero."""
    a, b = written.double().flatten(1), rounded.double().flatten(1)
    power = b.square().sum(1)
    return torch.where(power > 0, (a * b).sum(1) / power.clamp(min=1e-300), torch.ones_like(power)).numpy()


def _quantized_input(graph: ProtoGraph, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The DequantizeLinear that gives a node's input."""
    source = graph.producer.get(node.input[0])
    return source if source is not None and source.op_type == "DequantizeLinear" else None


def _as_gemm(graph: ProtoGraph, node: onnx.NodeProto, writer: Writer) -> onnx.NodeProto:
    """A product over more than two dimensions as a Gemm of rows, its input flattened while it is integer.

    ONNX Runtime makes the same of it, but flattens behind the dequantization, where its integer kernel is not found.
    """
    source = _quantized_input(graph, node)
    assert source is not None
    shape = graph.shape(node.output[0])
    n_inputs = graph.shape(node.input[0])[-1]
    rows = writer.node("Reshape", source.input[0], writer.constant(np.array([-1, n_inputs], np.int64)))
    plain = writer.node("DequantizeLinear", rows, *source.input[1:])
    added = graph.only_reader(node.output[0])
    bias = [
        name for name in (added.input if added is not None and added.op_type == "Add" else ()) if name in graph.values
    ]
    gemm = onnx.helper.make_node("Gemm", [plain, node.input[1], *bias], [f"{node.output[0]}_rows"], transB=1)
    gemm.name = node.name
    graph.insert_before(node, gemm)
    end = added if bias and added is not None else node
    unflatten = onnx.helper.make_node(
        "Reshape",
        [gemm.output[0], _full_shape(source.input[0], shape, writer)],
        [end.output[0]],
        name=f"{node.name}_rows",
    )
    graph.substitute(end, unflatten)
    result: onnx.NodeProto = graph.producer[gemm.output[0]]
    return result


def _full_shape(rows_of: str, shape: tuple[int, ...], writer: Writer) -> str:
    """Name of a product's shape: a constant; where several sizes are known only at run time, the input's leading ones.

    Args:
        rows_of: the product's input before it was flattened.
        shape: of the product; 0 where a size is not known.
        writer: of the nodes.
    """
    if shape.count(0) < 2:
        return writer.constant(np.array([size or -1 for size in shape], np.int64))
    leading = writer.node("Shape", rows_of, end=-1)
    return writer.node("Concat", leading, writer.constant(np.array(shape[-1:], np.int64)), axis=0)


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


def _store_recurrent(
    graph: ProtoGraph, nodes: list[onnx.NodeProto], marked: dict[str, MarkedWeight], path: str
) -> None:
    """Each weight of a recurrent layer, before the exporter's reordering of the gates or, of small ones, behind it."""
    for name, weight in marked.items():
        source = f"{path}.{name}"
        reader = graph.first_reader(source)
        if reader is not None:
            rows = folded_form(
                Writer(graph, reader, f"{source}_stored"), weight.quantizer, weight.rounded, _ones(weight)
            )
            graph.replace_value(source, rows)
    for k, node in enumerate(nodes):
        for place, kind in ((1, "ih"), (2, "hh")):
            if node.input[place] in graph.values:
                names = [f"weight_{kind}_l{k}", f"weight_{kind}_l{k}_reverse"]
                _store_gates(
                    graph, node, place, [marked[name] for name in names if name in marked], f"{path}_{k}_{kind}"
                )


def _store_gates(graph: ProtoGraph, node: onnx.NodeProto, place: int, parts: list[MarkedWeight], prefix: str) -> None:
    """The weights of one or two directions, in the file's order of gates."""
    writer = Writer(graph, node, prefix)
    stacked = []
    for part in parts:
        rows = gates_in_order(node.op_type, part.rounded)
        quantizer = _quantizer_in_order(node.op_type, part.quantizer)
        values = folded_form(writer, quantizer, rows, _ones(part))
        stacked.append(writer.node("Unsqueeze", values, writer.constant(np.array([0], np.int64))))
    node.input[place] = stacked[0] if len(stacked) == 1 else writer.node("Concat", *stacked, axis=0)


def _ones(weight: MarkedWeight) -> Array:
    return np.ones(len(weight.rounded))


def _quantizer_in_order(op: str, quantizer: WeightQuantizer) -> WeightQuantizer:
    """The same quantizer for rows in the file's order."""
    for name, value in quantizer.named_buffers():
        if name != "table" and value.shape[0] > 1:
            setattr(quantizer, name, gates_in_order(op, value))
    return quantizer
