"""Moves rounding in an ONNX graph to where engines look for it; every value stays what it was.

An engine computes an op on integers if each input comes from a DequantizeLinear and the output goes to a
QuantizeLinear. A value on a grid stays on it where it is only moved (reshape, split, ...) or cut off at the grid's
ends, so that a further pair of the same grid behind such an op changes nothing.
"""

from __future__ import annotations

import numpy as np
import onnx

from autocompress.runtimes.onnx_graph import ProtoGraph

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_SPATIAL = ([2, 3], [-2, -1])
_MOVING = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice", "MaxPool", "DepthToSpace"}
    | {"SpaceToDepth", "Identity", "Gather"}
)
"""Ops whose outputs hold values of their first input and no others."""


def let_integers_flow_(model: onnx.ModelProto) -> None:
    """Leaves out cuts that a grid makes already, and carries grids through ops that only move values; in place."""
    graph = ProtoGraph(model.graph)
    for node in list(graph.proto.node):
        if _is_idle_cut(graph, node):
            graph.bypass(node)
        elif node.op_type == "ReduceMean":
            _pool_instead(graph, node)
    for node in reversed([node for node in graph.proto.node if node.op_type == _QUANTIZE]):
        _round_before_padding(graph, node)
        _carry_up(graph, node)
    for node in list(graph.proto.node):
        if node.op_type == _QUANTIZE:
            _drop_second_pair(graph, node)
    for node in list(graph.proto.node):
        if _moves(graph, node):
            _carry_down(graph, node)
    graph.drop_unused()


def _is_idle_cut(graph: ProtoGraph, node: onnx.NodeProto) -> bool:
    """Whether a Relu or Clip cuts off nothing of what a DequantizeLinear gives it."""
    if node.op_type not in ("Relu", "Clip"):
        return False
    source = graph.producer.get(node.input[0])
    if source is None or not _is_activation_grid(graph, source) or source.op_type != _DEQUANTIZE:
        return False
    low, high = _ends(graph, source)
    bounds = [0.0, np.inf] if node.op_type == "Relu" else [-np.inf, np.inf]
    for place, name in enumerate(node.input[1:]):
        if name and name not in graph.values:
            return False
        if name:
            bounds[place] = float(graph.values[name])
    return bool(low >= bounds[0] and high <= bounds[1])


def _pool_instead(graph: ProtoGraph, node: onnx.NodeProto) -> None:
    """Makes the mean over both spatial dimensions a pooling, which engines have on integers."""
    source = graph.producer.get(node.input[0])
    axes = graph.values.get(node.input[1]) if len(node.input) > 1 else None
    if axes is None or source is None or source.op_type != _DEQUANTIZE or sorted(axes.tolist()) not in _SPATIAL:
        return
    kept = next((item.i for item in node.attribute if item.name == "keepdims"), 1)
    shape = graph.shape(node.output[0])
    if len(shape) != (4 if kept else 2):
        return
    pooled = f"{node.output[0]}_pooled"
    pool = onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name)
    graph.insert_before(node, pool)
    size = graph.add(f"{pooled}_shape", np.array(shape, np.int64))
    graph.substitute(
        node, onnx.helper.make_node("Reshape", [pooled, size], list(node.output), name=f"{node.name}_shape")
    )


def _is_activation_grid(graph: ProtoGraph, node: onnx.NodeProto) -> bool:
    """Whether a node rounds to, or reads, one constant grid of uint8; not a stored weight."""
    if node.op_type not in (_QUANTIZE, _DEQUANTIZE) or node.input[0] in graph.values or len(node.input) < 3:
        return False
    scale, zero = (graph.values.get(name) for name in node.input[1:3])
    return bool(scale is not None and zero is not None and scale.ndim == 0 and zero.dtype == np.uint8)


def _ends(graph: ProtoGraph, node: onnx.NodeProto) -> tuple[np.float32, np.float32]:
    """The lowest and the highest value of a grid, as engines compute them in float32."""
    scale, zero = np.float32(graph.values[node.input[1]]), int(graph.values[node.input[2]])
    return np.float32(-zero) * scale, np.float32(255 - zero) * scale


def _same_grid(graph: ProtoGraph, a: onnx.NodeProto, b: onnx.NodeProto) -> bool:
    return all(
        np.array_equal(graph.values[x], graph.values[y]) for x, y in zip(a.input[1:3], b.input[1:3], strict=True)
    )


def _moves(graph: ProtoGraph, node: onnx.NodeProto | None) -> bool:
    """Whether a node only moves values of its first input to constant places."""
    return (
        node is not None
        and node.op_type in _MOVING
        and all(name in graph.values or not name for name in node.input[1:])
    )


def _round_before_padding(graph: ProtoGraph, quantize: onnx.NodeProto) -> None:
    """Pads with zeros behind a pair instead of before it: engines make the padding a part of the convolution."""
    pad = graph.producer.get(quantize.input[0])
    back = graph.only_reader(quantize.output[0])
    if pad is None or back is None or not _is_zero_pad(graph, pad) or graph.n_readers[pad.output[0]] != 1:
        return
    if not _is_activation_grid(graph, quantize) or back.op_type != _DEQUANTIZE or graph.is_output(back.output[0]):
        return
    name, padded = pad.input[0], pad.output[0]
    graph.replace_value(back.output[0], padded)
    graph.reread(quantize, padded, name)
    graph.reread(pad, name, back.output[0])
    graph.move_behind(pad, back)


def _is_zero_pad(graph: ProtoGraph, node: onnx.NodeProto) -> bool:
    """Whether a node puts zeros around its first input, at places that are constant."""
    if node.op_type != "Pad" or any(item.name == "mode" and item.s != b"constant" for item in node.attribute):
        return False
    if any(name and name not in graph.values for name in node.input[1:]):
        return False
    return len(node.input) < 3 or not node.input[2] or float(graph.values[node.input[2]]) == 0.0


def _drop_second_pair(graph: ProtoGraph, quantize: onnx.NodeProto) -> None:
    """Lets the readers of a pair read the pair before it, where both have the same grid."""
    source, back = graph.producer.get(quantize.input[0]), graph.only_reader(quantize.output[0])
    if source is None or back is None or source.op_type != _DEQUANTIZE or back.op_type != _DEQUANTIZE:
        return
    grids = (_is_activation_grid(graph, node) for node in (source, quantize, back))
    if all(grids) and _same_grid(graph, source, quantize) and not graph.is_output(back.output[0]):
        graph.replace_value(back.output[0], source.output[0])


def _carry_up(graph: ProtoGraph, quantize: onnx.NodeProto) -> None:
    """Rounds before the moving ops in front of a QuantizeLinear, where nothing else reads what they give."""
    name = quantize.input[0]
    while _moves(graph, graph.producer.get(name)) and graph.n_readers[name] == 1:
        node = graph.producer[name]
        if len(node.output) > 1:
            return
        name = node.input[0]
    source = graph.producer.get(name)
    alone = graph.n_readers[name] == 1
    if name == quantize.input[0] or source is None or not alone or source.op_type == _DEQUANTIZE:
        return
    if _is_activation_grid(graph, quantize):
        graph.add_pair_behind(name, quantize)


def _carry_down(graph: ProtoGraph, node: onnx.NodeProto) -> None:
    """Puts a pair behind a moving op that reads a DequantizeLinear, where there is no such pair yet."""
    source = graph.producer.get(node.input[0])
    if source is None or source.op_type != _DEQUANTIZE or not _is_activation_grid(graph, source):
        return
    for name in node.output:
        readers = graph.readers(name)
        same = [item for item in readers if item.op_type == _QUANTIZE and _same_grid(graph, item, source)]
        if readers and len(same) < graph.n_readers[name]:
            graph.add_pair_behind(name, source)
