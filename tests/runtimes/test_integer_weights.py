"""Rewritten graphs compute what the exported ones compute, in int8, with nothing of this machine left in the file."""

from __future__ import annotations

import copy
import logging
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from autocompress.candidate import Candidate
from autocompress.compression import compress
from autocompress.runtimes.integer_weights import store_integer_weights_
from autocompress.runtimes.model_file import write_onnx

Array = NDArray[np.float32]
SIZE = 6
IN_SCALE = 0.02


@dataclass(frozen=True)
class Unit:
    """Weights of one quantized convolution and of the batch norm behind it."""

    weight: Array
    gamma: Array
    beta: Array
    mean: Array
    var: Array
    bias: Array | None = None


def unit_of(seed: int, bias: bool = True, n_out: int = 5, n_in: int = 3) -> Unit:
    """Random weights with batch-norm scales of both signs."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Array:
        return rng.normal(size=shape).astype(np.float32)

    return Unit(
        weight=draw(n_out, n_in, 3, 3),
        gamma=draw(n_out),
        beta=draw(n_out),
        mean=draw(n_out),
        var=np.exp(draw(n_out)),
        bias=draw(n_out) if bias else None,
    )


def proto_of(unit: Unit, *, float_weight: bool = False, second_reader: bool = False) -> onnx.ModelProto:
    """x -> Q -> DQ -> Conv(Q -> DQ of the weight) -> BatchNormalization -> y, as the exporter writes it."""
    n_out = len(unit.gamma)
    scale = (np.abs(unit.weight).max((1, 2, 3)) / 127).astype(np.float32)
    values: dict[str, NDArray[np.generic]] = {
        "x_scale": np.array(IN_SCALE, np.float32),
        "x_zero": np.array(128, np.uint8),
        "w": unit.weight,
        "w_scale": np.where(scale > 0, scale, 1).astype(np.float32),
        "w_zero": np.zeros(n_out, np.int8),
        "gamma": unit.gamma,
        "beta": unit.beta,
        "mean": unit.mean,
        "var": unit.var,
    }
    conv_inputs = ["xdq", "w" if float_weight else "wdq"]
    if unit.bias is not None:
        values["b"] = unit.bias
        conv_inputs.append("b")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xdq"]),
        helper.make_node("Conv", conv_inputs, ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"], epsilon=1e-3),
    ]
    if not float_weight:
        nodes[2:2] = [
            helper.make_node("QuantizeLinear", ["w", "w_scale", "w_zero"], ["wq"], axis=0),
            helper.make_node("DequantizeLinear", ["wq", "w_scale", "w_zero"], ["wdq"], axis=0),
        ]
    shape = [1, n_out, SIZE, SIZE]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    if second_reader:
        nodes.append(helper.make_node("Relu", ["c"], ["z"]))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, shape))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, unit.weight.shape[1], SIZE, SIZE])]
    initializers = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "unit", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def session_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return options


def run(model: onnx.ModelProto, x: Array) -> list[Array]:
    """Outputs in ONNX Runtime, every node run as it is written."""
    options = session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {session.get_inputs()[0].name: x})]


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    after = onnx.ModelProto()
    after.CopyFrom(model)
    store_integer_weights_(after)
    onnx.checker.check_model(after, full_check=True)
    return after


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def initializers(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def an_input(n_in: int = 3, seed: int = 9) -> Array:
    return np.random.default_rng(seed).normal(size=(1, n_in, SIZE, SIZE)).astype(np.float32)


def assert_same_function(model: onnx.ModelProto, n_in: int = 3) -> onnx.ModelProto:
    """The rewritten model, checked against the given one on random input."""
    after = rewritten(model)
    x = an_input(n_in)
    for expected, found in zip(run(model, x), run(after, x), strict=True):
        assert expected.shape == found.shape
        np.testing.assert_allclose(found, expected, atol=2e-4 * max(1.0, float(np.abs(expected).max())), rtol=0)
    return after


@given(st.integers(0, 999), st.booleans(), st.integers(1, 9))
def test_a_norm_of_any_sign_folds_into_the_scales(seed: int, bias: bool, n_out: int) -> None:
    after = assert_same_function(proto_of(unit_of(seed, bias, n_out)))
    assert ops(after)["BatchNormalization"] == 0
    assert ops(after)["QuantizeLinear"] == 1, "only the activation is still rounded at run time"


@pytest.mark.parametrize("bias", [False, True])
def test_a_zero_norm_scale_gives_a_constant_channel(bias: bool) -> None:
    unit = unit_of(1, bias)
    unit.gamma[[0, 3]] = 0
    model = proto_of(unit)
    after = assert_same_function(model)
    (y,) = run(after, an_input())
    step = IN_SCALE * float(np.abs(unit.weight).max()) / 127  # the bias is a whole number of these
    for channel in (0, 3):
        assert np.ptp(y[0, channel]) == 0
        assert abs(y[0, channel, 0, 0] - unit.beta[channel]) <= step / 2
    scales = [initializers(after)[n.input[1]] for n in after.graph.node if n.op_type == "DequantizeLinear"]
    assert all((np.asarray(scale, np.float64) > 0).all() for scale in scales), "runtimes refuse a scale of zero"


@pytest.mark.parametrize("gamma", [1e-4, 1e-6, 1e-9, -1e-9, 1e-20, 1e-38])
def test_a_norm_scale_that_weight_decay_has_almost_removed_keeps_the_shift(gamma: float) -> None:
    unit = unit_of(2)
    unit.gamma[2] = gamma
    assert_same_function(proto_of(unit))


def test_a_huge_norm_shift_is_kept() -> None:
    unit = unit_of(3)
    unit.beta[:] = [1e4, -1e4, 0, 1e5, 1e3]
    assert_same_function(proto_of(unit))


def test_an_all_zero_weight_channel() -> None:
    unit = unit_of(4)
    unit.weight[1] = 0
    assert_same_function(proto_of(unit))


def test_weights_are_stored_as_int8_and_biases_as_int32() -> None:
    unit = unit_of(5)
    before = proto_of(unit)
    after = rewritten(before)
    stored = initializers(after)
    conv = next(node for node in after.graph.node if node.op_type == "Conv")
    source = {node.output[0]: node for node in after.graph.node}
    weight, bias = (stored[source[name].input[0]] for name in conv.input[1:3])
    assert (weight.dtype.name, weight.shape) == ("int8", unit.weight.shape)
    assert (bias.dtype.name, bias.shape) == ("int32", unit.gamma.shape)
    scale = np.abs(unit.weight).max((1, 2, 3), keepdims=True) / 127
    signs = np.sign(unit.gamma)[:, None, None, None]
    np.testing.assert_array_equal(weight, signs * np.rint(unit.weight / scale))
    assert not [name for name, value in stored.items() if value.dtype == np.float32 and value.ndim > 1]
    assert not {"w", "gamma", "beta", "mean", "var", "b"} & set(stored), "nothing unused is kept"
    big = unit_of(5, n_out=16, n_in=64)
    assert len(rewritten(proto_of(big)).SerializeToString()) < 0.35 * len(proto_of(big).SerializeToString())


@pytest.mark.parametrize("how", [{"float_weight": True}, {"second_reader": True}])
def test_a_norm_that_cannot_be_folded_stays(how: dict[str, bool]) -> None:
    after = assert_same_function(proto_of(unit_of(6), **how))
    assert ops(after)["BatchNormalization"] == 1


def test_a_norm_without_a_convolution_before_it_stays() -> None:
    unit = replace(unit_of(7, n_out=3), bias=None)
    model = proto_of(unit)
    kept = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    kept[0].input[0] = "xdq"
    del model.graph.node[:]
    model.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xdq"]),
            *kept,
        ]
    )
    assert ops(assert_same_function(model))["BatchNormalization"] == 1


def test_two_convolutions_of_one_weight_keep_their_own_norms() -> None:
    model = proto_of(unit_of(8))
    other = unit_of(18)
    extra = {"gamma2": other.gamma, "beta2": other.beta, "mean2": other.mean, "var2": other.var}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in extra.items())
    model.graph.node.extend(
        [
            helper.make_node("Conv", ["xdq", "wdq", "b"], ["c2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["c2", *extra], ["y2"], epsilon=1e-3),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("y2", TensorProto.FLOAT, [1, 5, SIZE, SIZE]))
    assert_same_function(model)


def exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> onnx.ModelProto:
    """What PyTorch's exporter writes, as it is."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto


class Twins(nn.Module):
    """Two convolutions of equal weights, which the exporter merges into one, each with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.b = copy.deepcopy(self.a)
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.b(torch.relu(self.one(self.a(x)))))


def set_norms_(model: nn.Module) -> None:
    """Gives each norm statistics of its own and scales of both signs, one of them zero."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            n = norm.num_features
            with torch.no_grad():
                norm.running_mean.copy_(torch.randn(n))  # type: ignore[union-attr]
                norm.running_var.copy_(torch.rand(n) + 0.5)  # type: ignore[union-attr]
                if norm.affine:
                    norm.weight.copy_(torch.randn(n))
                    norm.weight[1] = 0
                    norm.bias.copy_(torch.randn(n))


def eight_bit(model: nn.Module, inputs: tuple[Tensor, ...], paths: list[str]) -> nn.Module:
    set_norms_(model.eval())
    return compress(model, Candidate(weight_bits=dict.fromkeys(paths, 8)), inputs, [inputs])


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Two 8-bit convolutions with norms (one without a bias, one with; one norm without scales), and a linear layer."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16, affine=False), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    )
    return eight_bit(model, (x,), ["0", "3", "8"]), (x,)


def test_an_exported_net_keeps_its_function(net: tuple[nn.Module, tuple[Tensor, ...]]) -> None:
    model, inputs = net
    before = exported(model, inputs)
    after = rewritten(before)
    assert ops(after)["BatchNormalization"] == 0
    x = inputs[0].numpy()
    (expected,), (found,) = run(before, x), run(after, x)
    # folding moves a value that lies half way between two levels to either, one level of the last layer's input apart
    level = model.get_submodule("8.input_quantizer").scale.item()  # type: ignore[operator]
    step = level * model.get_submodule("8").weight.abs().max().item()  # type: ignore[operator]
    assert np.abs(found - expected).max() <= 3 * step
    assert np.median(np.abs(found - expected)) < 1e-4
    np.testing.assert_allclose(expected, model(*inputs).detach().numpy(), atol=3 * step)


def test_the_written_file_runs_on_integer_kernels_and_names_nothing_of_this_machine(
    net: tuple[nn.Module, tuple[Tensor, ...]], tmp_path: Path
) -> None:
    model, inputs = net
    file = tmp_path / "model.onnx"
    write_onnx(model, inputs, file)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"], "self-contained"
    content = file.read_bytes()
    for text in (str(Path(__file__).parents[2]), "site-packages", ".py", "File ", "autocompress"):
        assert text.encode() not in content, f"{text!r} is in the file"
    proto = onnx.load(file)
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
    options = session_options()
    options.optimized_model_filepath = str(tmp_path / "executed.onnx")
    ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    executed = ops(onnx.load(tmp_path / "executed.onnx"))
    assert (executed["QLinearConv"], executed["QGemm"]) == (2, 1)
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "BatchNormalization"} & set(executed)


def test_exported_layers_of_equal_weights_keep_their_norms_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, SIZE, SIZE)
    model = eight_bit(Twins(), (x,), ["a", "b"])
    write_onnx(model, (x,), tmp_path / "twins.onnx")
    expected = model(x).detach().numpy()
    (found,) = run(onnx.load(tmp_path / "twins.onnx"), x.numpy())
    assert np.abs(found - expected).mean() < 0.01 * np.abs(expected).mean()
