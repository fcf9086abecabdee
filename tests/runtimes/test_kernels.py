"""What the capability tables say is what the engines do: the kernels that they picked for each precision and layer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.runtimes import check_parity, is_executed, runtime_named
from autocompress.runtimes.onnxruntime_backend import OnnxRuntime, session_options
from autocompress.space.candidate import PRECISIONS, Candidate, Precision


class Only(nn.Module):
    """One layer and a ReLU."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return torch.relu(y[0] if isinstance(y, tuple) else y)


def net_of(kind: str) -> tuple[Only, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 16, 32)
    return {
        "linear": lambda: (Only(nn.Linear(32, 48)), x),
        "conv1d": lambda: (Only(nn.Conv1d(16, 24, 3)), x),
        "conv2d": lambda: (Only(nn.Conv2d(16, 32, 3)), torch.randn(2, 16, 8, 8)),
        "embedding": lambda: (Only(nn.Embedding(200, 32)), torch.randint(0, 200, (2, 5))),
        "lstm": lambda: (Only(nn.LSTM(32, 40, batch_first=True)), x),
        "gru": lambda: (Only(nn.GRU(32, 40, batch_first=True)), x),
    }[kind]()


KINDS = ("linear", "conv1d", "conv2d", "embedding", "lstm", "gru")
QUICK = {
    *((kind, bits) for kind in ("linear", "conv2d", "embedding") for bits in (8, "8w", "4w")),
    *(("conv1d", 8), ("lstm", 8), ("gru", "4w"), ("linear", 5), ("linear", 16), ("conv2d", 16), ("lstm", 16)),
}
CASES = [
    pytest.param(kind, bits, marks=() if (kind, bits) in QUICK else pytest.mark.slow)
    for kind in KINDS
    for bits in PRECISIONS
]


def executed_by_onnxruntime(file: Path, kind: str) -> set[Precision]:
    """Precisions that the optimized graph's ops stand for."""
    options = session_options(1)
    options.optimized_model_filepath = str(file.with_name("executed.onnx"))
    ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(file.with_name("executed.onnx")).graph
    ops = {node.op_type for node in graph.node}
    if ops & {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLSTM"}:
        return {8}
    if "MatMulNBits" in ops:
        node = next(node for node in graph.node if node.op_type == "MatMulNBits")
        return {"8w"} if next(a.i for a in node.attribute if a.name == "bits") == 8 else {"4w"}
    types = {item.name: item.data_type for item in graph.initializer}
    gathered = {types.get(node.input[0]) for node in graph.node if node.op_type == "Gather"}
    if onnx.TensorProto.INT8 in gathered:
        return {8, "8w"}
    return {"4w"} if onnx.TensorProto.UINT8 in gathered else {32}


def executed_by_openvino(file: Path, kind: str) -> set[Precision]:
    """Precisions of the compute node's inputs and primitive in the compiled graph."""
    from autocompress.runtimes.openvino_backend import compile_file

    def kernel(op: object) -> str:
        return op.get_rt_info()["primitiveType"].astype(str)  # type: ignore[attr-defined,no-any-return]

    names = {"linear": "FullyConnected", "embedding": "Gather"}
    layer = names.get(kind, "Convolution" if kind.startswith("conv") else "RNNSeq")
    ops = compile_file(file, 1).get_runtime_model().get_ordered_ops()
    found = [op for op in ops if op.get_rt_info()["layerType"].astype(str) == layer]
    assert found, "the layer is in the compiled graph"
    inputs = {item.get_element_type().get_type_name() for op in found for item in op.inputs()}
    if kind == "embedding":
        return {8, "8w"} if "i8" in inputs else {"4w"} if "u8" in inputs else {32}
    if any("I8" in kernel(op) for op in found):
        return {8}
    if "u4" in inputs:
        return {"4w"}
    if "i8" in inputs or "u8" in inputs:
        return {"8w"}
    return {16} if any("bf16" in kernel(op) for op in found) else {32}


Exported = Callable[[str, Precision, str], tuple[nn.Module, Tensor, Path]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Student, input and file of a case; one file serves both runtimes, since ONNX Runtime ignores OpenVINO's note.

    8-bit LSTMs are written for each: ONNX Runtime has an operator of its own.
    """

    def make(kind: str, bits: Precision, name: str) -> tuple[nn.Module, Tensor, Path]:
        shared = "openvino" if find_spec("openvino") else "onnxruntime"
        return made(kind, bits, name if (kind, bits) == ("lstm", 8) else shared)

    @functools.cache
    def made(kind: str, bits: Precision, writer: str) -> tuple[nn.Module, Tensor, Path]:
        model, x = net_of(kind)
        candidate = Candidate(weight_bits={"layer": bits} if bits != 32 else {})
        student = compress(model.eval(), candidate, (x,), [(x,)])
        return student, x, runtime_named(writer).export(student, (x,), tmp_path_factory.mktemp(f"{kind}_{bits}"))

    return make


@pytest.mark.parametrize(("kind", "bits"), CASES)
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_the_table_says_what_runs(exported: Exported, name: str, kind: str, bits: Precision) -> None:
    if name == "openvino":
        pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    runtime, (student, x, file) = runtime_named(name), exported(kind, bits, name)
    executed = (executed_by_onnxruntime if name == "onnxruntime" else executed_by_openvino)(file, kind)
    claimed = is_executed(runtime.capabilities(), bits, kind)
    assert (bits in executed) is claimed, f"{name} runs {kind} at {bits} as {executed}"
    assert check_parity(student, runtime.load, file, (x,)).relative_error < 0.02


@pytest.mark.parametrize(("other", "executed"), [(16, 16), (8, 16), (32, 32), ("4w", 32)])
def test_sixteen_bits_together_with_others(other: Precision, executed: Precision, tmp_path: Path) -> None:
    """OpenVINO has one precision for all that is float: bfloat16 where the CPU has it and nothing has to be float32."""
    openvino = pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 32)),
        torch.randn(2, 16, 6, 6),
    )
    candidate = Candidate(weight_bits={"0": 16, **({"3": other} if other != 32 else {})})
    runtime = runtime_named("openvino")
    file = runtime.export(compress(model.eval(), candidate, (x,), [(x,)]), (x,), tmp_path)
    has_bfloat16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert executed_by_openvino(file, "conv2d") == {executed if has_bfloat16 else 32}
    kernels = next(item.kernels for item in runtime.capabilities() if item.precision == 16)
    if not has_bfloat16:
        assert not kernels, "size-only in every file"
        return
    assert kernels["conv2d"] == "bfloat16 if all others are at 16 or 8, else float32"


@pytest.mark.parametrize("bits", [7, 5, 4, 3, 2])
def test_size_only_weights_are_stored_at_their_width(bits: int, tmp_path: Path) -> None:
    """Packed to the bit; the rest of the file is the table, a scale for each output, and the graph."""
    model = Only(nn.Linear(256, 256)).eval()
    student = compress(model, Candidate(weight_bits={"layer": bits}), (torch.ones(1, 256),))
    file = OnnxRuntime().export(student, (torch.ones(1, 256),), tmp_path)
    packed = 256 * 256 * bits // 8
    assert packed < file.stat().st_size < packed + 256 * 4 * 2 + 2**bits * 4 + 5000
