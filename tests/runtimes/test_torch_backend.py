"""PyTorch as a target."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autocompress.errors import ExportError, MissingExtraError
from autocompress.runtimes import Runtime, runtime_named
from autocompress.task import call_model
from tests.runtimes.contract import RuntimeContract, Two, inputs_of


class TestTorchEager(RuntimeContract):
    name = "torch"
    refusal = "must be a file that the torch runtime wrote"


class Plain(nn.Module):
    """Arguments of every type that a file holds: infinities, dtypes, lists, several outputs, constants."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, bias=False)
        self.register_buffer("offset", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(self.conv(self.norm(x)).relu_(), 2, dim=1)
        padded = nn.functional.pad(torch.cat([first, second], 1), (1, 1), value=-torch.inf)
        pooled = nn.functional.max_pool2d(padded, 2).flatten(2).mean(2).to(torch.float64).float()
        return pooled + self.offset + torch.tensor([1.0, 2.0, 3.0, 4.0]) + torch.zeros(4, device=x.device)


def test_many_kinds_of_arguments(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Plain().eval(), torch.randn(2, 3, 8, 8)
    runtime = runtime_named("torch")
    with torch.no_grad():
        torch.testing.assert_close(runtime.load(runtime.export(model, (x,), tmp_path)).predict((x,)), model(x))


def rewritten(file: Path, **changes: object) -> Path:
    with safe_open(file, "pt") as content:
        description = json.loads(content.metadata()["autocompress_graph"])
    other = file.with_name("other.safetensors")
    save_file(load_file(file), other, {"autocompress_graph": json.dumps({**description, **changes})})
    return other


@pytest.mark.parametrize("op", ["os.system.default", "aten.from_file.default", "builtins.eval", "aten.nothing.default"])
def test_a_file_can_call_nothing_but_aten(op: str, tmp_path: Path) -> None:
    runtime = runtime_named("torch")
    file = runtime.export(nn.ReLU(), (torch.ones(1, 2),), tmp_path)
    calls = [{"name": "evil", "op": op, "args": ["true"], "kwargs": {"dict": {}}}]
    with pytest.raises(ExportError, match="must be a file that the torch runtime wrote"):
        runtime.load(rewritten(file, calls=calls, output={"node": "evil"}))


def test_an_op_that_is_not_of_aten_is_named_with_its_module(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.quantized.cat([x, x], 1, None, None)

    with pytest.raises(ExportError, match=r"module '1' calls quantized\.cat|cannot be traced"):
        runtime_named("torch").export(nn.Sequential(nn.ReLU(), Odd()), (torch.ones(1, 2),), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch warns of itself
def test_compiled_predictions_equal_pytorch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(runtime_named("torch-compile"), tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["torch-cuda", "torch-cuda-compile"])
def test_on_a_gpu(name: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    check(runtime_named(name), tmp_path)


def check(runtime: Runtime, folder: Path) -> None:
    model, inputs = Two().eval(), inputs_of(4, named=False)
    session = runtime.load(runtime.export(model, inputs, folder))
    with torch.no_grad():
        torch.testing.assert_close(session.predict(inputs), call_model(model, inputs), atol=1e-4, rtol=1e-4)
    assert session.run(session.prepare(inputs)) is not None


def test_without_a_cuda_device(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(MissingExtraError, match="'torch-cuda' needs a CUDA device"):
        runtime_named("torch-cuda").load(tmp_path / "any.safetensors")
