"""The engine's own 8-bit files: they run, agree with the float file, and are of 8 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.runtimes import runtime_named
from autocompress.runtimes.engine_int8 import quantize_dynamic_with_engine, quantize_with_engine


def _samples(*shape: int) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(shape, generator=generator),) for _ in range(16)]


@pytest.mark.parametrize(("runtime", "suffix"), [("onnxruntime", ".onnx"), ("openvino", ".xml")])
def test_a_static_file_runs_and_agrees(tmp_path: Path, runtime: str, suffix: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("nncf")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 5)).eval()
    samples = _samples(1, 3, 8, 8)
    engine = runtime_named(runtime)
    plain = engine.export(model, samples[0], tmp_path)
    target = tmp_path / f"int8{suffix}"
    quantize_with_engine(runtime, plain, target, samples, reduce_range=True)
    assert sorted(path.name for path in tmp_path.glob("prepared*")) == []
    session = engine.load(target)
    with torch.no_grad():
        errors = [float((session.predict(item) - model(*item)).abs().max()) for item in samples]
        largest = max(float(model(*item).abs().max()) for item in samples)
    assert 0 < sum(errors) / len(errors) < 0.1 * largest
    weights = target.with_suffix(".bin") if runtime == "openvino" else target
    n_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert weights.stat().st_size < 0.6 * n_bytes


def test_a_dynamic_file_runs_and_agrees(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)).eval()
    samples = _samples(1, 64)
    engine = runtime_named("onnxruntime")
    plain = engine.export(model, samples[0], tmp_path)
    quantize_dynamic_with_engine(plain, tmp_path / "dynamic.onnx", reduce_range=True)
    found = engine.load(tmp_path / "dynamic.onnx").predict(samples[0])
    with torch.no_grad():
        assert torch.allclose(found, model(*samples[0]), atol=0.05)


def test_a_runtime_without_a_tool_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not for 'torch'"):
        quantize_with_engine("torch", tmp_path / "a", tmp_path / "b", [])
