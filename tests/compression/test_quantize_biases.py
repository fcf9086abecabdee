"""Biases of 8-bit layers stand at whole steps of the integer sum, so that a file rounds where the student does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.compression import compress, snap_biases_
from autocompress.runtimes import check_parity, rounds_before_sums, runtime_named
from autocompress.space.candidate import Candidate


class Block(nn.Module):
    """A residual block, whose input is rounded once for both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)


def net_and_input() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    stem = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.Sequential(*stem, *(Block() for _ in range(6)), nn.Flatten(), nn.Linear(288, 10))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model.eval(), torch.randn(32, 3, 8, 8)


def eight_bit(model: nn.Module, x: Tensor, round_before_sums: bool = True) -> nn.Module:
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    candidate = Candidate(weight_bits=dict.fromkeys(layers, 8))
    return compress(model, candidate, (x,), [(x,)], round_before_sums=round_before_sums)


def steps_of(student: nn.Module, path: str, grid: str, norm: str | None) -> np.ndarray:
    """Each channel's bias in steps, by numpy from the tensors that a file is written from."""
    state = {name: value.double().numpy() for name, value in student.state_dict().items()}
    step = state[f"{grid}.scale"] * state[f"{path}.weight_quantizers.weight.scale"]
    bias = state.get(f"{path}.bias", 0.0)
    if norm is None:
        return np.asarray(bias / step)
    factor = state.get(f"{norm}.weight", 1.0) / np.sqrt(state[f"{norm}.running_var"] + 1e-5)
    return np.asarray(
        ((bias - state[f"{norm}.running_mean"]) * factor + state.get(f"{norm}.bias", 0.0)) / (step * factor)
    )


@pytest.mark.parametrize(
    ("path", "grid", "norm"),
    [
        ("0", "0.input_quantizer", "1"),
        ("3.conv1", "3.input_quantizer", "3.bn1"),
        ("3.conv2", "3.conv2.input_quantizer", "3.bn2"),
        ("10", "10.input_quantizer", None),
    ],
)
def test_biases_are_whole_steps(path: str, grid: str, norm: str | None) -> None:
    model, x = net_and_input()
    student = eight_bit(model, x)
    steps = steps_of(student, path, grid, norm)
    assert np.abs(steps).max() > 100, "the steps are small against the biases"
    assert np.abs(steps - np.rint(steps)).max() < 0.01
    shifted = student.get_submodule(path).bias if norm is None else student.get_submodule(norm).running_mean
    with torch.no_grad():
        shifted.add_(0.01 * torch.rand(len(shifted)))  # type: ignore[union-attr,operator,arg-type]
    moved = steps_of(student, path, grid, norm)
    assert np.abs(moved - np.rint(moved)).max() > 0.1
    snap_biases_(student)
    settled = steps_of(student, path, grid, norm)
    assert np.abs(settled - np.rint(settled)).max() < 0.01
    assert np.abs(settled - moved).max() <= 0.51, "to the nearest"


def test_a_file_rounds_where_the_student_does(tmp_path: Path) -> None:
    model, x = net_and_input()
    student, runtime = eight_bit(model, x), runtime_named("onnxruntime")
    file = runtime.export(student, (x,), tmp_path)
    assert check_parity(student, runtime.load, file, (x,)).relative_error < 1e-3
    for norm in (module for module in student.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.add_(0.3 * torch.rand(norm.num_features))  # type: ignore[union-attr]
    file = runtime.export(student, (x,), tmp_path)
    assert check_parity(student, runtime.load, file, (x,)).relative_error > 1e-3, "as it would be without"


def test_a_norm_that_takes_everything_away_stays() -> None:
    model, x = net_and_input()
    with torch.no_grad():
        model.get_submodule("1").weight[2] = 0.0  # type: ignore[union-attr,operator,index]
    student = eight_bit(model, x)
    assert all(bool(value.isfinite().all()) for value in student.state_dict().values())


def test_openvino_leaves_out_what_its_student_leaves_out(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    (model, x), runtime = net_and_input(), runtime_named("openvino")
    errors, files = [], []
    for rounds in (rounds_before_sums(runtime), True):
        student = eight_bit(model, x, rounds)
        file = runtime.export(student, (x,), tmp_path)
        errors.append(check_parity(student, runtime.load, file, (x,)).relative_error)
        files.append(file.read_bytes())
    assert files[0] == files[1], "the file asks for the rounding in any case"
    assert errors[0] < 0.5 * errors[1]
