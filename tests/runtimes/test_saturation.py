"""Kernels that saturate are found, and files with half-range weights are right on them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.compression.quantize.weights import HALF_RANGE_MAX, INT8_MAX, PerChannelInt8Quantizer
from autocompress.runtimes import runtime_named, saturates
from autocompress.space.candidate import Candidate
from autocompress.task import Inputs

needs_openvino = pytest.mark.skipif(not find_spec("openvino"), reason="the extra 'openvino' is not installed")
NAMES = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]
X = torch.ones(2, 64)


def relative_error(runtime: str, half_range: bool, folder: Path) -> float:
    """Of a file whose weights and inputs are all at the ends of their ranges."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False)).eval()
    nn.init.ones_(model[0].weight)
    student = compress(model, Candidate(weight_bits={"0": 8}), (X,), [(X,)], half_range_weights=half_range)
    engine = runtime_named(runtime)
    with torch.no_grad():
        exact = student(X)
    return float((engine.load(engine.export(student, (X,), folder)).predict((X,)) - exact).abs().max() / exact.max())


@pytest.mark.parametrize("runtime", NAMES)
def test_half_range_weights_are_right_on_every_machine(runtime: str, tmp_path: Path) -> None:
    assert relative_error(runtime, True, tmp_path) < 0.01


@pytest.mark.parametrize("runtime", NAMES)
def test_full_range_weights_are_right_where_nothing_saturates(runtime: str, tmp_path: Path) -> None:
    if not saturates(runtime_named(runtime)):
        assert relative_error(runtime, False, tmp_path) < 0.01


class Halving:
    """A machine whose results saturate at half of what is exact."""

    def __init__(self, file: Path) -> None:
        self._session = runtime_named("onnxruntime").load(file)

    def predict(self, inputs: Inputs) -> Tensor:
        return self._session.predict(inputs) / 2

    def prepare(self, inputs: Inputs) -> object:
        return inputs

    def run(self, prepared: object) -> object:
        return prepared


def test_the_machine_that_is_asked_about_decides() -> None:
    assert saturates(runtime_named("onnxruntime"), Halving)
    assert not saturates(runtime_named("torch")), "it executes no layer in 8 bits"


@pytest.mark.parametrize(("half_range", "largest"), [(True, HALF_RANGE_MAX), (False, INT8_MAX)])
def test_codes_stay_within_the_range(half_range: bool, largest: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8)).eval()
    student = compress(model, Candidate(weight_bits={"0": 8, "1": "8w"}), (X,), [(X,)], half_range_weights=half_range)
    for path, expected in (("0", largest), ("1", INT8_MAX)):
        layer = student.get_submodule(path)
        quantizer = layer.weight_quantizers["weight"]  # type: ignore[index, union-attr]
        assert isinstance(quantizer, PerChannelInt8Quantizer)
        codes = quantizer.rounded(layer.weight.detach()) / quantizer.scale[:, None]  # type: ignore[operator, union-attr]
        assert int(codes.round().abs().max()) == expected, path
