"""A file in ONNX Runtime gives what the model gives in PyTorch, for any number of samples; bad input says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import ExportError, InputError
from autocompress.runtimes import export
from autocompress.runtimes.cpu_session import CpuSession, OnnxRuntime
from autocompress.task import Inputs, call_model


class Two(nn.Module):
    """Two inputs of different shapes that do not commute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(5, 4)

    def forward(self, image: Tensor, extra: Tensor) -> Tensor:
        return self.conv(image).mean((2, 3)) - self.fc(extra)


def inputs_of(n: int, named: bool) -> Inputs:
    generator = torch.Generator().manual_seed(n)
    image, extra = torch.randn(n, 2, 6, 6, generator=generator), torch.randn(n, 5, generator=generator)
    return {"image": image, "extra": extra} if named else (image, extra)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Two().eval()


@pytest.fixture(scope="module")
def files(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A file by its batch size; the one of batch size 4 was exported from named inputs."""
    folder = tmp_path_factory.mktemp("files")
    return {n: export(model, inputs_of(n, named=n == 4), folder / str(n)) for n in (1, 4)}


@pytest.fixture(scope="module")
def sessions(files: dict[int, Path]) -> dict[int, CpuSession]:
    return {n: OnnxRuntime().load(file) for n, file in files.items()}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("n", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("named", [False, True])
def test_predictions_equal_pytorch(
    model: nn.Module, sessions: dict[int, CpuSession], batch: int, n: int, named: bool
) -> None:
    inputs = inputs_of(n, named)
    found = sessions[batch].predict(inputs)
    assert found.shape == (n, 4)
    with torch.no_grad():
        torch.testing.assert_close(found, call_model(model, inputs), atol=1e-5, rtol=1e-5)


def test_a_run_takes_what_was_prepared(model: nn.Module, sessions: dict[int, CpuSession]) -> None:
    inputs = inputs_of(4, named=True)
    feed = sessions[4].prepare(dict(reversed(list(inputs.items()))))  # type: ignore[union-attr]
    outputs = sessions[4].run(feed)
    assert isinstance(outputs, list)
    with torch.no_grad():
        np.testing.assert_allclose(outputs[0], call_model(model, inputs).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        (torch.zeros(1, 2, 7, 7), torch.zeros(1, 5)),
        (torch.zeros(1, 2, 6, 6),),
        (torch.zeros(1, 2, 6, 6), torch.zeros(1, 5), torch.zeros(1)),
        (torch.zeros(1, 5), torch.zeros(1, 2, 6, 6)),
        {"image": torch.zeros(1, 2, 6, 6), "surprise": torch.zeros(1, 5)},
        {"image": torch.zeros(1, 2, 6, 6)},
        {"image": torch.zeros(1, 2, 6, 6), "extra": torch.zeros(1, 5), "surprise": torch.zeros(1)},
    ],
)
def test_inputs_of_other_shapes_or_names(sessions: dict[int, CpuSession], wrong: Inputs) -> None:
    with pytest.raises(InputError, match=r"the file takes .*'image': \(1, 2, 6, 6\).* export again"):
        sessions[1].prepare(wrong)
    with pytest.raises(InputError, match="export again"):
        sessions[1].predict(wrong)


def test_inputs_of_another_type(sessions: dict[int, CpuSession]) -> None:
    with pytest.raises(InputError, match="float"):
        sessions[1].prepare((torch.zeros(1, 2, 6, 6, dtype=torch.float64), torch.zeros(1, 5)))


def test_a_broken_file_is_refused(files: dict[int, Path], tmp_path: Path) -> None:
    whole = files[1].read_bytes()
    for name, content in (("empty", b""), ("text", b"not a model"), ("cut", whole[: len(whole) // 2])):
        file = tmp_path / f"{name}.onnx"
        file.write_bytes(content)
        with pytest.raises(ExportError, match=rf"ONNX Runtime .* refuses .*{name}\.onnx"):
            OnnxRuntime().load(file)
    with pytest.raises(ExportError, match=r"refuses .*nothing\.onnx"):
        OnnxRuntime().load(tmp_path / "nothing.onnx")


class Unwritable(nn.Module):
    """Calls an operation that ONNX has no counterpart for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(x)


class Branching(nn.Module):
    """Its way depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def test_a_model_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written as ONNX: .*airy_ai"):
        export(Unwritable(), torch.ones(1, 3), tmp_path)
    with pytest.raises(ExportError, match="cannot be written as ONNX: .*data-dependent"):
        export(Branching(), torch.ones(1, 3), tmp_path)
    assert not list(tmp_path.iterdir()), "nothing half-written is left"


def test_exporting_keeps_the_model_as_it_was(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    file = export(model, x, tmp_path / "made" / "here")
    assert file == tmp_path / "made" / "here" / "model.onnx"
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(OnnxRuntime().load(file).predict((x,)), model.eval()(x), atol=1e-5, rtol=1e-5)
