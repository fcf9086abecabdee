"""ONNX Runtime as a target."""

from __future__ import annotations

import logging
from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.errors import ExportError, MissingExtraError
from autocompress.runtimes import export, onnx_export, runtime_named
from autocompress.space.candidate import Candidate
from tests.runtimes.contract import RuntimeContract


class TestOnnxRuntime(RuntimeContract):
    name = "onnxruntime"
    refusal = "ONNX Runtime .* refuses"


class Unwritable(nn.Module):
    """Calls an operation that ONNX has no counterpart for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(x)


def test_an_op_without_counterpart_is_named_with_its_module(tmp_path: Path) -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), Unwritable()))
    with pytest.raises(
        ExportError, match=r"op aten\.special_airy_ai\.default of module '1\.1' cannot be written as ONNX"
    ):
        export(model, torch.ones(1, 3), tmp_path)


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    assert export(nn.Linear(3, 3), torch.ones(1, 3), tmp_path / "made" / "here").is_file()


@pytest.mark.parametrize(
    ("name", "provider"),
    [("onnxruntime-cuda", "CUDAExecutionProvider"), ("onnxruntime-tensorrt", "TensorrtExecutionProvider")],
)
def test_a_provider_that_is_not_there(name: str, provider: str, tmp_path: Path) -> None:
    if provider in ort.get_available_providers():
        pytest.skip(f"{provider} is there")
    with pytest.raises(MissingExtraError, match=f"{name}.* needs .*{provider}.* has .*CPUExecutionProvider"):
        runtime_named(name).load(tmp_path / "any.onnx")
    with pytest.raises(MissingExtraError, match=provider):
        runtime_named(name).capabilities()


class Places(nn.Module):
    """Adds an embedding of positions that a buffer holds, which the exporter computes beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kept, self.head = nn.Embedding(11, 8), nn.Embedding(10, 8), nn.Linear(8, 3)
        self.register_buffer("places", torch.arange(10))

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.head(self.words(ids) + self.kept(self.places[: ids.shape[1]]))
        return x


def test_a_rounded_layer_that_was_computed_beforehand_stays_rounded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = Places(), torch.randint(0, 11, (1, 5))
    student = compress(model, Candidate(weight_bits={"kept": 2}), (ids,))
    session = runtime_named("onnxruntime").load(export(student, (ids,), tmp_path))
    with torch.no_grad():
        expected, exact = student(ids), model(ids)
    assert torch.allclose(session.predict((ids,)), expected, atol=1e-5)
    assert not torch.allclose(expected, exact, atol=1e-3)


def test_the_exporters_own_notes_stay_off_the_terminal(caplog: pytest.LogCaptureFixture) -> None:
    folding = logging.getLogger("onnxscript.optimizer")
    with onnx_export._quiet():
        folding.warning("Evaluation failed")
    assert not caplog.records
    folding.warning("from outside")
    assert [record.message for record in caplog.records] == ["from outside"]
