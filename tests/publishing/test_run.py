"""A point's folder runs with the runtime and numpy alone, and gives what was measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.publishing.artifact import load
from autocompress.publishing.run import open_openvino
from autocompress.publishing.runner import choose_examples, measure_memory
from autocompress.runtimes import runtime_named
from autocompress.space.candidate import Candidate
from autocompress.task import SupervisedTask, as_inputs
from tests.shared.points import Point, tiny_point
from tests.shared.tasks import images, tiny_task, trained_model

ALONE = """
import runpy, sys
for name in ("autocompress", "torch", "onnx", "pandas"):
    sys.modules[name] = None  # importing it is an error
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def folder(mixed_point: Point) -> Path:
    return mixed_point[0]


def run(folder: Path, *arguments: object, check: bool = True) -> str:
    command = [sys.executable, "-c", ALONE, str(folder / "run.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert (done.returncode == 0) == check, done.stderr
    return done.stdout if check else done.stderr


def test_the_examples_give_what_the_manifest_says(folder: Path) -> None:
    said = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["examples"]["largest_output"]
    assert run(folder).splitlines() == [f"largest output: {said}", "as measured: 8 of 8"]
    with torch.no_grad():
        student = load(folder, tiny_task())(images(64, 4)[0][:8])
    assert student.argmax(1).tolist() == said, "the examples are the first calibration samples"


@pytest.mark.parametrize("bits", [16, 32])
def test_openvino_files_run_at_the_precision_that_they_were_measured_at(
    bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    inputs = (images(1, 0)[0],)
    candidate = Candidate(weight_bits=dict.fromkeys(("conv1", "conv2", "fc"), bits) if bits != 32 else {})
    student = compress(trained_model(), candidate, inputs, [inputs])
    file = runtime_named("openvino").export(student, inputs, tmp_path)
    from autocompress.runtimes.openvino_backend import compile_file

    asked: list[str] = []
    compile_model = openvino.Core.compile_model

    def noted(self: object, model: object, device: str, config: dict[str, object]) -> object:
        asked.append(str(config["INFERENCE_PRECISION_HINT"]))
        return compile_model(self, model, device, config)

    monkeypatch.setattr(openvino.Core, "compile_model", noted)
    open_openvino(file, 1)
    compile_file(file, 1)
    assert asked == (["bf16"] * 2 if bits == 16 else ["f32"] * 2)


class Height(nn.Module):
    """One number for each sample, without a dimension of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x).relu()).squeeze(-1)


def error(outputs: Tensor, targets: Tensor) -> float:
    return -float((outputs - targets).square().mean())


def test_numbers_are_shown_as_they_are(tmp_path: Path) -> None:
    batches = [(torch.randn(16, 4), torch.randn(16)) for _ in range(2)]
    task = SupervisedTask(Height(), batches, batches, batches, metric=error, loss=F.mse_loss)
    record = tiny_point(tmp_path / "point", Candidate(prune_ratio={"hidden": 0.5}), task=task)
    assert set(record.metrics) == {"accuracy"}, "as made; the file's own are in `file`"
    assert record.file is not None and set(record.file.metrics["test"]) == {"error", "loss"}
    with torch.no_grad():
        said = load(tmp_path / "point", task)(batches[0][0][:8]).tolist()
    kind, _, shown = run(tmp_path / "point").splitlines()[0].partition(": ")
    assert kind == "output"
    assert json.loads(shown) == pytest.approx(said, rel=1e-4)
    assert run(tmp_path / "point").splitlines()[1] == "as measured: 8 of 8"


def test_a_file_with_other_outputs_is_reported(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "changed")
    manifest = tmp_path / "changed" / "manifest.json"
    data = json.loads(manifest.read_text(encoding="utf-8"))
    data["examples"]["largest_output"] = [9] * 8
    manifest.write_text(json.dumps(data))
    assert "as measured: 0 of 8" in run(tmp_path / "changed")


def test_any_number_of_inputs(folder: Path, tmp_path: Path) -> None:
    x = images(11, 5)[0]
    np.save(tmp_path / "in.npy", x.numpy())
    run(folder, tmp_path / "in.npy", "-o", tmp_path / "out.npy")
    with torch.no_grad():
        expected = load(folder, tiny_task())(x).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=0.05 * np.abs(expected).max())


def test_pickled_inputs_are_refused(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.array([object()]), allow_pickle=True)
    assert "allow_pickle=False" in run(folder, tmp_path / "in.npy", check=False)


def test_sizes_are_of_the_file_and_of_an_archive_with_it(mixed_point: Point, tmp_path: Path) -> None:
    folder, record = mixed_point
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.write(folder / "model.onnx", "model.onnx")
    assert record.file is not None and record.file.zip_size_mib is not None
    assert record.file.size_mib == (folder / "model.onnx").stat().st_size / 2**20
    assert record.file.zip_size_mib == pytest.approx(archive.stat().st_size / 2**20, abs=250 / 2**20)


def test_time_and_memory(mixed_point: Point) -> None:
    folder, record = mixed_point
    assert float(run(folder, "--time").split()[1]) > 0
    assert record.file is not None and record.file.memory_mib is not None
    again = measure_memory(folder)
    assert again is not None and 0 < again < 2 * record.file.memory_mib < 400


def test_examples_are_few() -> None:
    assert [len(tensor) for tensor in choose_examples((torch.zeros(64, 3), torch.zeros(64)))] == [8, 8]
    assert [len(t) for t in as_inputs(choose_examples({"x": torch.zeros(64, 2**18)})).values()] == [8]  # type: ignore[union-attr]
    assert [len(tensor) for tensor in choose_examples((torch.zeros(9, 2**20),))] == [2], "8 MiB at most"
    assert [len(tensor) for tensor in choose_examples((torch.zeros(9, 2**22),))] == [1], "but one in any case"


@pytest.mark.slow
def test_an_environment_of_the_runtime_and_numpy_is_enough(folder: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "onnxruntime", "numpy"], check=True)
    taken = shutil.copytree(folder, tmp_path / "elsewhere")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, taken / "run.py"], capture_output=True, text=True, check=True, cwd="/", env=environment
    )
    assert "as measured: 8 of 8" in done.stdout
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    names = {item["name"] for item in json.loads(listed.stdout)}
    assert names.isdisjoint({"torch", "autocompress", "onnx"})
