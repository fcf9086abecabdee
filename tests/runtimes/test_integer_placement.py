"""Rounding stands where engines compute on integers: nodes counted in the optimised graph, beside the engine's tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.graph import inspect_model
from autocompress.runtimes import check_parity, rounds_before_sums, runtime_named
from autocompress.runtimes.engine_int8 import quantize_static
from autocompress.space.candidate import Candidate
from tests.runtimes.integer_nets import NETS, settled

FLOAT_LAYERS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"}
LAYERS = ["Conv", "Gemm", "MatMul"]


@dataclass
class Files:
    """One net: the student, our file, the float file, and inputs."""

    model: nn.Module
    student: nn.Module
    ours: Path
    plain: Path
    inputs: list[tuple[Tensor, ...]]


@pytest.fixture(scope="module", params=NETS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """All layers at 8 bits, for ONNX Runtime."""
    model, inputs = settled(request.param)
    folder = tmp_path_factory.mktemp("files")
    runtime = runtime_named("onnxruntime")
    plain = runtime.export(model, inputs[0], folder).rename(folder / "plain.onnx")
    student = all_8_bits(model, inputs)
    return Files(model, student, runtime.export(student, inputs[0], folder), plain, inputs)


def all_8_bits(model: nn.Module, inputs: Sequence[tuple[Tensor, ...]], runtime: str = "onnxruntime") -> nn.Module:
    graph = inspect_model(model, inputs[0])
    n_weights = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    assert len(graph.layers) == n_weights, "every layer can get bits"
    candidate = Candidate(weight_bits={layer.path: 8 for layer in graph.layers})
    rounds = rounds_before_sums(runtime_named(runtime))
    return compress(model, candidate, inputs[0], inputs, graph=graph, round_before_sums=rounds)


def executed(file: Path) -> Counter[str]:
    """Op types of ONNX Runtime's optimised graph."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    target = file.with_suffix(".executed.onnx")
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(target).graph.node)


def n_rounding(counts: Counter[str]) -> int:
    return counts["QuantizeLinear"] + counts["DequantizeLinear"]


def tools_own(files: Files, op_types: list[str] | None) -> Counter[str]:
    """What the engine executes of the file that its own tool makes."""
    target = files.plain.with_suffix(".static.onnx")
    quantize_static(files.plain, target, files.inputs, True, op_types)
    return executed(target)


def test_no_more_rounding_is_left_than_by_the_engines_own_tool(files: Files) -> None:
    ours = executed(files.ours)
    theirs = min(n_rounding(tools_own(files, op_types)) for op_types in (LAYERS, None))
    assert n_rounding(ours) <= theirs, dict(ours)
    assert not FLOAT_LAYERS & set(ours), "every layer is computed on integers"
    assert not {"Clip", "Pad", "Relu"} & set(ours)


def test_the_file_gives_what_the_student_gives(files: Files) -> None:
    x = (torch.cat([item[0] for item in files.inputs]),)
    runtime = runtime_named("onnxruntime")
    assert check_parity(files.student, runtime.load, files.ours, x).relative_error < 0.05
    with torch.no_grad():
        expected, found = files.model(*x), files.student(*x)
    assert float((found - expected).norm() / expected.norm()) < 0.3, "and rounding changes little"


@pytest.mark.parametrize("name", NETS)
def test_openvino_gives_what_the_student_gives(name: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    model, inputs = settled(name)
    runtime = runtime_named("openvino")
    student = all_8_bits(model, inputs, "openvino")
    file = runtime.export(student, inputs[0], tmp_path)
    x = (torch.cat([item[0] for item in inputs]),)
    assert check_parity(student, runtime.load, file, x).relative_error < 0.1
