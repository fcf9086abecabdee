"""A file that gives something else than the model is refused, with the layer where they part."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.errors import ExportError
from autocompress.runtimes import RUNTIMES, Session, check_parity, export, runtime_named
from autocompress.space.candidate import Candidate
from autocompress.task import Inputs


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    with torch.no_grad():  # so that the norm's output is not the convolution's
        norm.weight.uniform_(1.0, 3.0)
        norm.bias.uniform_(1.0, 3.0)
    parts = (nn.Conv2d(3, 8, 3), norm, nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*parts, nn.Linear(128, 10)).eval()


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
@pytest.mark.parametrize("bits", [32, 8])
def test_a_correct_file_passes(model: nn.Module, name: str, bits: int, tmp_path: Path) -> None:
    if name == "openvino":
        pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    student = compress(model, Candidate(weight_bits=dict.fromkeys(["0", "3", "6"], bits)), (X,), [(X,)])
    assert export(student, X, tmp_path, runtime=name, check_inputs=X).is_file()
    assert name in RUNTIMES


@pytest.mark.parametrize(("path", "bits"), [("0", 32), ("3", 32), ("6", 32), ("3", 8)])
def test_a_broken_student_is_refused_at_its_layer(model: nn.Module, path: str, bits: int, tmp_path: Path) -> None:
    runtime = runtime_named("onnxruntime")
    student = compress(model, Candidate(weight_bits=dict.fromkeys(["0", "3", "6"], bits)), (X,), [(X,)])
    file = runtime.export(student, (X,), tmp_path)
    broken = copy.deepcopy(student)
    with torch.no_grad():
        broken.get_submodule(path).bias.add_(3.0)  # type: ignore[union-attr,operator]
    with pytest.raises(ExportError, match=f"relative error of .* they part at layer '{path}'"):
        check_parity(broken, runtime.load, file, (X,))


class Named(nn.Module):
    """Returns its outputs by name, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.conv(x)).mean((2, 3))
        return {"logits": self.head(features), "features": features}


@pytest.mark.parametrize("bits", [32, 8])
def test_outputs_with_names_are_compared_by_the_first(bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = compress(Named().eval(), Candidate(weight_bits={"conv": bits, "head": bits}), (X,), [(X,)])
    runtime = runtime_named("onnxruntime")
    found = check_parity(student, runtime.load, runtime.export(student, (X,), tmp_path), (X,))
    assert found.relative_error < 0.05


def test_values_that_are_not_finite(model: nn.Module, tmp_path: Path) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.get_submodule("3").weight[0] = float("nan")  # type: ignore[index,operator]
    with pytest.raises(ExportError, match="differs by inf .* layer '3'.*not finite"):
        export(broken, X, tmp_path, check_inputs=X)


def test_figures_are_those_of_the_outputs(model: nn.Module, tmp_path: Path) -> None:
    class Shifted:
        """A runtime's session that gives what the model gives and a little more."""

        def predict(self, inputs: Inputs) -> Tensor:
            outputs: Tensor = model(*inputs).detach().clone()
            outputs[0, 0] += 1e-3
            return outputs

    expected = model(X).detach()
    parity = check_parity(model, lambda file: cast("Session", Shifted()), tmp_path, (X,))
    assert parity.max_abs_diff == pytest.approx(1e-3, rel=1e-3)
    assert parity.relative_error == pytest.approx(1e-3 / float(expected.norm()), rel=1e-3)
    assert parity.agreement == 1.0
