"""8-bit LSTMs for ONNX Runtime's CPU kernel that rounds what it reads, and its hidden state, while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from torch import Tensor

from autocompress.compression.quantize.weights import PerChannelInt8Quantizer
from autocompress.runtimes.fake_quant_export import MarkedWeight
from autocompress.runtimes.onnx_graph import ProtoGraph
from autocompress.runtimes.weight_packing import Writer, codes_of

GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
"""The file's order of a recurrent layer's gates, as places in torch's order."""

_DOMAIN = "com.microsoft"
_N_LSTM_INPUTS = 8


def gates_in_order(op: str, rows: Tensor) -> Tensor:
    """Rows of a recurrent weight, (n_gates · n_units, n), in the file's order of gates."""
    gates = rows.chunk(len(GATES[op]))
    return torch.cat([gates[i] for i in GATES[op]])


def store_dynamic_lstm_(
    model: onnx.ModelProto,
    graph: ProtoGraph,
    nodes: Sequence[onnx.NodeProto],
    marked: Mapping[str, MarkedWeight],
    path: str,
) -> bool:
    """Makes each LSTM node of a layer a DynamicQuantizeLSTM with int8 weights, one scale per row; in place.

    Args:
        model: gets the operator set.
        graph: of the model.
        nodes: of the layer, one for each level.
        marked: its weights by torch's names.
        path: of the layer.

    Returns:
        False, and nothing is changed, where the kernel does not fit: a GRU, other precisions, batch-first nodes.
    """
    fits = all(node.op_type == "LSTM" and not _attribute(node, "layout") for node in nodes)
    if not (fits and nodes and all(weight.integer for weight in marked.values())):
        return False
    for k, node in enumerate(nodes):
        values = {kind: _codes(graph, node, marked, f"{kind}_l{k}", path) for kind in ("weight_ih", "weight_hh")}
        (w, w_scale, w_zero), (r, r_scale, r_zero) = values["weight_ih"], values["weight_hh"]
        further = [*node.input[3:], *[""] * _N_LSTM_INPUTS][: _N_LSTM_INPUTS - 3]
        made = onnx.helper.make_node(
            "DynamicQuantizeLSTM",
            [node.input[0], w, r, *further, w_scale, w_zero, r_scale, r_zero],
            list(node.output),
            name=node.name,
            domain=_DOMAIN,
        )
        made.attribute.extend(item for item in node.attribute if item.name != "layout")
        graph.substitute(node, made)
    if all(opset.domain != _DOMAIN for opset in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    return True


def _codes(
    graph: ProtoGraph, node: onnx.NodeProto, marked: Mapping[str, MarkedWeight], name: str, path: str
) -> tuple[str, str, str]:
    """Names of a weight's codes, (n_directions, n_inputs, 4 · n_units), and of its scales and zero points."""
    writer = Writer(graph, node, f"{path}.{name}")
    codes, scales = [], []
    for part in (marked[key] for key in (name, f"{name}_reverse") if key in marked):
        assert isinstance(part.quantizer, PerChannelInt8Quantizer)
        rows, scale = codes_of(part.quantizer, part.rounded)
        order = gates_in_order(node.op_type, torch.arange(len(rows))).numpy()
        codes.append(rows[order].T)
        scales.append(scale[order])
    values = (np.stack(codes), np.stack(scales), np.zeros((len(codes), len(scales[0])), np.int8))
    stored, scale_name, zero_name = (writer.constant(value) for value in values)
    return stored, scale_name, zero_name


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), 0)
