"""Writes one rounded weight: constants, and the nodes that decode them.

Where a runtime has kernels for the form it reads DequantizeLinear; everywhere else plain arithmetic on constants, which
runtimes fold when they load the file, so that the layer runs at the speed of float weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from autocompress.compression.quantize.weights import (
    GROUP_LEVELS,
    INT8_MAX,
    CodebookQuantizer,
    GroupwiseInt4Quantizer,
    PerChannelInt8Quantizer,
    WeightQuantizer,
)
from autocompress.runtimes.onnx_graph import ProtoGraph

Array = NDArray[Any]
_PLACES = np.array([128, 64, 32, 16, 8, 4, 2, 1], np.float32)
"""What the bits of a byte are worth, the first one first."""


class Writer:
    """Adds constants and nodes in front of one node of a graph, under names that start alike.

    Args:
        graph: is changed.
        before: the node that will read the result.
        prefix: of all new names.
    """

    def __init__(self, graph: ProtoGraph, before: onnx.NodeProto, prefix: str) -> None:
        self._graph, self._before, self._prefix, self._n = graph, before, prefix, 0

    def constant(self, value: Array) -> str:
        """Name of a new constant."""
        return self._graph.add(self._name(), np.ascontiguousarray(value))

    def uint4(self, codes: Array) -> str:
        """Name of a new constant of codes below 16, two in a byte."""
        flat = np.pad(codes.reshape(-1), (0, codes.size % 2)).astype(np.uint8)
        packed = flat[0::2] | (flat[1::2] << 4)
        name = self._name()
        tensor = helper.make_tensor(name, TensorProto.UINT4, codes.shape, packed.tobytes(), raw=True)
        self._graph.add_proto(tensor)
        return name

    def bfloat16(self, value: Array) -> str:
        """Name of a new constant in bfloat16."""
        bits = torch.from_numpy(np.ascontiguousarray(value)).bfloat16().view(torch.int16).numpy()
        name = self._name()
        self._graph.add_proto(helper.make_tensor(name, TensorProto.BFLOAT16, value.shape, bits.tobytes(), raw=True))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Output of a new node."""
        output = self._name()
        self._graph.insert_before(self._before, helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def _name(self) -> str:
        self._n += 1
        return f"{self._prefix}_{self._n}"


def codes_of(quantizer: PerChannelInt8Quantizer, weight: Tensor) -> tuple[Array, Array]:
    """int8 codes in the weight's shape, and the scales, shape (n_channels,) or (1,)."""
    scale = quantizer.scale.detach()
    by_channel = scale if scale.numel() == 1 else scale.reshape(-1, *[1] * (weight.ndim - 1))
    codes = (weight / by_channel).round().clamp(-INT8_MAX, INT8_MAX)
    return codes.to(torch.int8).numpy(), scale.numpy()


def group_codes_of(quantizer: GroupwiseInt4Quantizer, weight: Tensor) -> tuple[Array, Array, Array]:
    """Codes below 16 (n_channels, n_groups, group size), scales and zero points (n_channels, n_groups)."""
    matrix = weight.flatten(1)
    scale, zero = quantizer.scale, quantizer.zero_point
    padded = torch.nn.functional.pad(matrix, (0, scale.shape[1] * quantizer.group_size - matrix.shape[1]))
    groups = padded.reshape(*scale.shape, quantizer.group_size)
    codes = ((groups / scale[:, :, None]).round() + zero[:, :, None]).clamp(0, GROUP_LEVELS - 1)
    return codes.to(torch.uint8).numpy(), scale.numpy(), zero.to(torch.uint8).numpy()


def integer_form(
    writer: Writer, quantizer: PerChannelInt8Quantizer, weight: Tensor, factor: Array, transposed: bool
) -> str:
    """DequantizeLinear of int8 codes, one scale per output channel, all scales positive."""
    codes, scale = codes_of(quantizer, weight)
    signs = np.where(factor < 0, -1, 1).astype(np.int8)
    codes = codes * signs.reshape(-1, *[1] * (weight.ndim - 1))
    steps = np.maximum(scale * np.abs(factor), np.finfo(np.float32).tiny).astype(np.float32)
    zeros = np.zeros(len(steps), np.int8)
    axis = 1 if transposed else 0
    inputs = (codes.T if transposed else codes, steps, zeros)
    return writer.node("DequantizeLinear", *(writer.constant(value) for value in inputs), axis=axis)


def kernel_form(writer: Writer, quantizer: WeightQuantizer, weight: Tensor) -> str:
    """The form of weight-only kernels: the matrix (n_inputs, n_outputs), by column or in groups of its rows."""
    if isinstance(quantizer, PerChannelInt8Quantizer):
        return integer_form(writer, quantizer, weight, np.ones(len(weight)), transposed=True)
    assert isinstance(quantizer, GroupwiseInt4Quantizer)
    codes, scale, zero = group_codes_of(quantizer, weight)
    matrix = codes.reshape(len(codes), -1)[:, : weight.shape[1]].T
    names = writer.uint4(matrix), writer.constant(scale.T), writer.uint4(zero.T)
    return writer.node("DequantizeLinear", *names, axis=0, block_size=quantizer.group_size)


def embedded_rows(writer: Writer, quantizer: WeightQuantizer, weight: Tensor, lookup: onnx.NodeProto) -> onnx.NodeProto:
    """Looks up stored rows and their scales: nothing but the rows in use becomes float.

    Args:
        writer: of constants and nodes.
        quantizer: `PerChannelInt8Quantizer` (a scale a row) or `GroupwiseInt4Quantizer` (two codes a byte; the upper
            four bits hold the second half of a row).
        weight: at its rounded value, shape (n_rows, n_columns).
        lookup: the Gather that is replaced.

    Returns:
        The node that takes its place.
    """
    indices, name = lookup.input[1], lookup.name
    if isinstance(quantizer, PerChannelInt8Quantizer):
        codes, scale = codes_of(quantizer, weight)
        plain = writer.node("Cast", writer.node("Gather", writer.constant(codes), indices), to=TensorProto.FLOAT)
        steps = writer.node("Gather", writer.constant(scale[:, None].astype(np.float32)), indices)
        return helper.make_node("Mul", [plain, steps], list(lookup.output), name=name)
    assert isinstance(quantizer, GroupwiseInt4Quantizer)
    grouped, scale, zero = group_codes_of(quantizer, weight)
    flat = grouped.reshape(len(grouped), -1)
    half = flat.shape[1] // 2
    packed = writer.node("Gather", writer.constant(flat[:, :half] | flat[:, half:] << 4), indices)
    both = writer.node("Cast", packed, to=TensorProto.FLOAT)
    high = writer.node("Floor", writer.node("Mul", both, writer.constant(np.array(1 / 16, np.float32))))
    low = writer.node("Sub", both, writer.node("Mul", high, writer.constant(np.array(16, np.float32))))
    rows = writer.node("Concat", low, high, axis=-1)
    split = writer.node("Reshape", rows, writer.constant(np.array([-1, *grouped.shape[1:]], np.int64)))
    zeros = writer.node("Cast", writer.node("Gather", writer.constant(zero), indices), to=TensorProto.FLOAT)
    steps = writer.node("Gather", writer.constant(scale), indices)
    by_group = writer.constant(np.array([-1, grouped.shape[1], 1], np.int64))
    centred = writer.node("Sub", split, writer.node("Reshape", zeros, by_group))
    values = writer.node("Mul", centred, writer.node("Reshape", steps, by_group))
    shape = writer.node("Shape", rows)
    return helper.make_node("Reshape", [values, shape], list(lookup.output), name=name)


def folded_form(writer: Writer, quantizer: WeightQuantizer, weight: Tensor, factor: Array) -> str:
    """Arithmetic on constants that gives float32 rows of `weight` times `factor`.

    Args:
        writer: adds them.
        quantizer: of the weight.
        weight: at its rounded value, shape (n_channels, ...).
        factor: by channel, of a batch norm that was folded in, shape (n_channels,).
    """
    by_row = factor.reshape(-1, *[1] * (weight.ndim - 1))
    if isinstance(quantizer, PerChannelInt8Quantizer):
        codes, scale = codes_of(quantizer, weight)
        # the Floor changes nothing, but keeps OpenVINO from taking this for a form that it has a kernel for
        plain = writer.node("Floor", writer.node("Cast", writer.constant(codes), to=TensorProto.FLOAT))
        rows = (scale * factor).reshape(by_row.shape).astype(np.float32)
        return writer.node("Mul", plain, writer.constant(rows))
    if isinstance(quantizer, GroupwiseInt4Quantizer):
        return _folded_groups(writer, quantizer, weight, factor)
    if isinstance(quantizer, CodebookQuantizer):
        rows = (quantizer.scale.numpy().reshape(by_row.shape) * by_row).astype(np.float32)
        return writer.node("Mul", _looked_up(writer, quantizer, weight), writer.constant(rows))
    halves = writer.bfloat16((weight.numpy() * by_row).astype(np.float32))
    return writer.node("Cast", halves, to=TensorProto.FLOAT)


def _folded_groups(writer: Writer, quantizer: GroupwiseInt4Quantizer, weight: Tensor, factor: Array) -> str:
    codes, scale, zero = group_codes_of(quantizer, weight)
    plain = _unpacked(writer, codes, quantizer.bits)
    centred = writer.node("Sub", plain, writer.constant(zero[:, :, None].astype(np.float32)))
    steps = (scale * factor[:, None])[:, :, None].astype(np.float32)
    rows = writer.node("Mul", centred, writer.constant(steps))
    flat = writer.node("Reshape", rows, writer.constant(np.array([codes.shape[0], -1], np.int64)))
    n_inputs = weight[0].numel()
    if n_inputs < codes.shape[1] * codes.shape[2]:
        start, end, axis = (writer.constant(np.array([value], np.int64)) for value in (0, n_inputs, 1))
        flat = writer.node("Slice", flat, start, end, axis)
    return writer.node("Reshape", flat, writer.constant(np.array(weight.shape, np.int64)))


def _looked_up(writer: Writer, quantizer: CodebookQuantizer, weight: Tensor) -> str:
    """Table entries in the weight's shape."""
    scale = quantizer.scale.reshape(-1, *[1] * (weight.ndim - 1))
    table = quantizer.table
    indices = torch.bucketize(weight / scale, (table[1:] + table[:-1]) / 2).numpy()
    chosen = writer.node("Cast", _unpacked(writer, indices, quantizer.bits), to=TensorProto.INT32)
    return writer.node("Gather", writer.constant(table.numpy()), chosen)


def _unpacked(writer: Writer, codes: Array, n_bits: int) -> str:
    """Codes below 2^n_bits as float, in their shape, from packed bit planes.

    Exactly `n_bits` bits a code whatever that is, and unpacked by operations that every runtime folds: plane p of byte
    c holds bit p of eight codes, and that of code j is floor(c / 2^(7 - j)) mod 2.
    """
    flat = codes.reshape(-1)
    planes = np.stack([np.packbits((flat >> bit & 1).astype(np.uint8)) for bit in range(n_bits)])
    data = writer.node("Cast", writer.constant(planes[:, :, None]), to=TensorProto.FLOAT)
    shifted = writer.node("Floor", writer.node("Div", data, writer.constant(_PLACES)))
    half = writer.node("Floor", writer.node("Mul", shifted, writer.constant(np.array(0.5, np.float32))))
    bits = writer.node("Sub", shifted, writer.node("Mul", half, writer.constant(np.array(2.0, np.float32))))
    rows = writer.node("Reshape", bits, writer.constant(np.array([n_bits, -1], np.int64)))
    weighted = writer.node("Mul", rows, writer.constant((2.0 ** np.arange(n_bits))[:, None].astype(np.float32)))
    total = writer.node("ReduceSum", weighted, writer.constant(np.array([0], np.int64)), keepdims=0)
    start, end, axis = (writer.constant(np.array([value], np.int64)) for value in (0, flat.size, 0))
    exact = writer.node("Slice", total, start, end, axis)
    return writer.node("Reshape", exact, writer.constant(np.array(codes.shape, np.int64)))
