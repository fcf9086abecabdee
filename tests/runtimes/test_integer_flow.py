"""Moving rounding through a graph changes no value, and puts pairs where engines look for them."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autocompress.runtimes.integer_flow import let_integers_flow_

SHAPE = (1, 4, 6, 6)
STEPS = ("relu", "clip", "transpose", "slice", "split", "reshape", "pad", "maxpool", "pair", "other pair", "sigmoid")


class Builder:
    """A chain of ops on one value of four dimensions."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[np.generic]] = {}
        self.value, self.shape = "x", SHAPE

    def constant(self, value: NDArray[np.generic]) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def add(self, op: str, *constants: NDArray[np.generic], n_outputs: int = 1, **attributes: object) -> None:
        outputs = [f"v{len(self.nodes)}_{place}" for place in range(n_outputs)]
        inputs = [self.value, *(self.constant(value) for value in constants)]
        self.nodes.append(helper.make_node(op, inputs, outputs, **attributes))
        self.value = outputs[-1]

    def pair(self, scale: float, zero: int) -> None:
        grid = (np.array(scale, np.float32), np.array(zero, np.uint8))
        self.add("QuantizeLinear", *grid)
        self.add("DequantizeLinear", *grid)

    def step(self, name: str) -> None:
        n, c, h, w = self.shape
        if name == "relu":
            self.add("Relu")
        elif name == "clip":
            self.add("Clip", np.array(0, np.float32), np.array(6, np.float32))
        elif name == "sigmoid":
            self.add("Sigmoid")
        elif name == "transpose":
            self.add("Transpose", perm=[0, 2, 3, 1])
            self.shape = (n, h, w, c)
        elif name == "slice" and c > 1:
            self.add("Slice", *(np.array([value], np.int64) for value in (0, c - 1, 1)))
            self.shape = (n, c - 1, h, w)
        elif name == "split" and c > 1:
            self.add("Split", np.array([1, c - 1], np.int64), n_outputs=2, axis=1)
            self.shape = (n, c - 1, h, w)
        elif name == "reshape":
            self.add("Reshape", np.array([n, w, c, h], np.int64))
            self.shape = (n, w, c, h)
        elif name == "pad":
            self.add("Pad", np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64))
            self.shape = (n, c, h + 1, w + 1)
        elif name == "maxpool" and h > 1 and w > 1:
            self.add("MaxPool", kernel_shape=[2, 2])
            self.shape = (n, c, h - 1, w - 1)
        elif name == "pair":
            self.pair(0.02, 0)
        elif name == "other pair":
            self.pair(0.05, 120)

    def model(self) -> onnx.ModelProto:
        values = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)
        y = helper.make_tensor_value_info(self.value, TensorProto.FLOAT, self.shape)
        graph = helper.make_graph(self.nodes, "chain", [x], [y], values)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def output(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return result


def flowing(steps: list[str], is_read: bool) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    builder = Builder()
    for name in steps:
        builder.step(name)
    if is_read:
        builder.add("Neg")
    before = builder.model()
    after = copy.deepcopy(before)
    let_integers_flow_(after)
    onnx.checker.check_model(after)
    return before, after


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=10), st.integers(0, 99), st.booleans())
def test_no_value_changes(steps: list[str], seed: int, is_read: bool) -> None:
    before, after = flowing([*steps, "pair"], is_read)
    x = (np.random.default_rng(seed).normal(size=SHAPE) * 4).astype(np.float32)
    np.testing.assert_array_equal(output(after, x), output(before, x))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["pair", "relu"], ["Q", "DQ"]),
        (["pair", "clip"], ["Q", "DQ"]),
        (["other pair", "relu"], ["Q", "DQ", "Relu"]),
        (["pair", "pair"], ["Q", "DQ"]),
        (["pair", "split", "pair"], ["Q", "DQ", "Split", "Q", "DQ"]),
        (
            ["pair", "slice", "transpose", "other pair"],
            ["Q", "DQ", "Slice", "Q", "DQ", "Transpose", "Q", "DQ", "Q", "DQ"],
        ),
        (
            ["sigmoid", "reshape", "transpose", "pair"],
            ["Sigmoid", "Q", "DQ", "Reshape", "Q", "DQ", "Transpose", "Q", "DQ"],
        ),
        (["sigmoid", "pad", "pair"], ["Sigmoid", "Q", "DQ", "Pad"]),
        (["pair", "sigmoid"], ["Q", "DQ", "Sigmoid"]),
        (["sigmoid", "relu", "pair"], ["Sigmoid", "Relu", "Q", "DQ"]),
    ],
)
def test_pairs_stand_around_what_only_moves_values(steps: list[str], expected: list[str]) -> None:
    _, after = flowing(steps, is_read=True)
    short = {"QuantizeLinear": "Q", "DequantizeLinear": "DQ"}
    assert [short.get(node.op_type, node.op_type) for node in after.graph.node] == [*expected, "Neg"]


def test_padding_with_another_value_stays_where_it_is() -> None:
    builder = Builder()
    builder.step("sigmoid")
    builder.add("Pad", np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64), np.array(1.0, np.float32))
    builder.step("pair")
    model = builder.model()
    let_integers_flow_(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds == ["Sigmoid", "Pad", "QuantizeLinear", "DequantizeLinear"]


def test_what_others_read_too_is_not_moved() -> None:
    builder = Builder()
    builder.step("sigmoid")
    builder.step("transpose")
    moved = builder.value
    builder.step("pair")
    builder.nodes.append(helper.make_node("Add", [builder.value, moved], ["sum"]))
    builder.value = "sum"
    model = builder.model()
    let_integers_flow_(model)
    assert Counter(node.op_type for node in model.graph.node)["QuantizeLinear"] == 1
