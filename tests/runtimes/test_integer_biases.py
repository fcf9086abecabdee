"""Written files compute what the students compute, in integers, with nothing of this machine left in them."""

from __future__ import annotations

import copy
from collections import Counter
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

from autocompress.compression import compress
from autocompress.runtimes.integer_biases import store_integer_biases_
from autocompress.runtimes.onnx_export import write_onnx
from autocompress.space.candidate import Candidate, Precision

Array = NDArray[np.float32]
SIZE = 6
IN_SCALE = 0.02


def proto_of(codes: NDArray[np.int8], scale: Array, bias: Array) -> onnx.ModelProto:
    """x -> Q -> DQ -> Conv(DQ of the int8 weight, float bias) -> y, as weights are stored."""
    n_out, n_in = codes.shape[:2]
    values: dict[str, NDArray[np.generic]] = {
        "x_scale": np.array(IN_SCALE, np.float32),
        "x_zero": np.array(128, np.uint8),
        "w": codes,
        "w_scale": scale,
        "w_zero": np.zeros(n_out, np.int8),
        "b": bias,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xdq"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wdq"], axis=0),
        helper.make_node("Conv", ["xdq", "wdq", "b"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, n_in, SIZE, SIZE])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, n_out, SIZE, SIZE])]
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


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@given(st.integers(0, 999), st.sampled_from([0.0, 1e-3, 1.0, 1e4, 1e6]), st.sampled_from([1.0, 1e-9, 1e-30]))
def test_biases_become_whole_numbers_of_steps(seed: int, size: float, smallest: float) -> None:
    """Any size of bias with any size of weight, some channels all zero: the same function, and no scale of zero."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-127, 128, (5, 3, 3, 3)).astype(np.int8)
    codes[seed % 5] = 0
    scale = (0.01 * np.array([1, smallest, 1, 0.5, 1])).astype(np.float32)
    bias = (size * rng.normal(size=5)).astype(np.float32)
    before = proto_of(codes, scale, bias)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    store_integer_biases_(after)
    onnx.checker.check_model(after, full_check=True)
    x = rng.normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)
    (expected,), (found,) = run(before, x), run(after, x)
    np.testing.assert_allclose(found, expected, atol=2e-4 * max(1.0, float(np.abs(expected).max())), rtol=0)
    stored = {item.name: numpy_helper.to_array(item) for item in after.graph.initializer}
    source = {node.output[0]: node for node in after.graph.node}
    conv = next(node for node in after.graph.node if node.op_type == "Conv")
    assert stored[source[conv.input[2]].input[0]].dtype == np.int32
    scales = [stored[node.input[1]] for node in after.graph.node if node.op_type == "DequantizeLinear"]
    assert all((np.asarray(value, np.float64) > 0).all() for value in scales), "runtimes refuse a scale of zero"


NORMS = {
    "scales of both signs": {"weight": [1.3, -0.7, 0.2, -2.0, 0.9]},
    "zero scales": {"weight": [0.0, 1.0, 1.0, 0.0, -1.0]},
    "almost zero scales": {"weight": [1e-4, 1e-6, 1e-9, -1e-9, 1e-20]},
    "one almost zero scale": {"weight": [1.0, 1.0, 1e-38, 1.0, 1.0]},
    "huge shifts": {"bias": [1e4, -1e4, 0.0, 1e5, 1e3]},
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_of_any_kind_goes_into_scales_and_biases(kind: str, bias: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=bias), nn.BatchNorm2d(5)).eval()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 1.5)
        for name, values in NORMS[kind].items():
            model[1].get_parameter(name).copy_(torch.tensor(values))
    x = torch.randn(4, 3, SIZE, SIZE)
    student = compress(model, Candidate(weight_bits={"0": 8}), (x,), [(x,)])
    write_onnx(student, (x,), tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    assert not ops(proto)["BatchNormalization"]
    (found,) = run(proto, x.numpy())
    level = float(student.get_submodule("1").output_quantizer.scale)  # type: ignore[union-attr,operator,arg-type]
    assert np.abs(found - student(x).detach().numpy()).max() <= 1.01 * level
    weights = [item for item in proto.graph.initializer if len(item.dims) == 4]
    assert [item.data_type for item in weights] == [TensorProto.INT8], "and the float weight is not kept"


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


@pytest.mark.parametrize("norms", ["of their own", "equal"])
@pytest.mark.parametrize("bits", [8, "8w", 5])
def test_layers_of_equal_weights_are_kept_apart(norms: str, bits: Precision, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, SIZE, SIZE)
    model = Twins().eval()
    if norms == "of their own":
        set_norms_(model)
    student = compress(model, Candidate(weight_bits={"a": bits, "b": bits}), (x,), [(x,)])
    write_onnx(student, (x,), tmp_path / "twins.onnx")
    expected = student(x).detach().numpy()
    (found,) = run(onnx.load(tmp_path / "twins.onnx"), x.numpy())
    assert np.abs(found - expected).mean() < 0.01 * np.abs(expected).mean()
