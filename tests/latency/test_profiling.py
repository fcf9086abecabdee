"""A profile end to end on a tiny net: files, measurement, resume, refusals; and the parts it is made of."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch

from autocompress.errors import InputError, MeasurementError
from autocompress.files import read_json
from autocompress.graph import inspect_model
from autocompress.latency import LatencyModel, PairedTiming, on_device, plan
from autocompress.latency.device_files import MEASURABLE
from autocompress.latency.layer_extraction import LayerExtractor
from autocompress.latency.layer_profiles import covering, layer_keys, quick_student
from autocompress.latency.on_device import (
    MeasureSettings,
    clock_drift,
    converged,
    measure_folder,
    repeatability,
    write_json,
)
from autocompress.latency.plan import PlanSettings, write_plan
from autocompress.latency.profiling import model_of, profile_of, write_script
from autocompress.latency.validation import check_by_leaving_out, check_on
from autocompress.runtimes import export, runtime_named
from autocompress.space.candidate import Candidate
from autocompress.task import SupervisedTask
from tests.latency.nets import INPUTS, made_up_table, net

N_CANDIDATES = 12


def task() -> SupervisedTask:
    batches = [(torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.long))]
    return SupervisedTask(net(1)[0], batches, batches, batches, example_inputs=INPUTS, name="net")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "MAX_EXTRA", 1)
        write_plan(task(), net(1)[2], folder, PlanSettings(n_candidates=N_CANDIDATES))
    return folder


@pytest.fixture
def folder(planned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(planned, tmp_path / "plan"))


def test_files_run_share_their_weights_and_cover_the_candidates(folder: Path) -> None:
    planned_ = read_json(folder / "plan.json")
    assert len(planned_["candidates"]) == N_CANDIDATES
    keys = {
        key
        for row in layer_keys(net(1)[3], [Candidate.from_dict(c) for c in planned_["candidates"].values()])
        for key in row
        if key is not None
    }
    assert keys <= set(planned_["pieces"])
    assert sum(file.stat().st_size for file in folder.glob("*.onnx")) < 40_000 * len(planned_["files"])
    on_device.write_weights(folder, planned_)
    for name in [planned_["reference"], *planned_["files"]]:
        on_device.open_session("onnxruntime", folder / name, 1)()
        used = [
            (int(item.external_data[1].value), int(item.external_data[2].value))
            for item in onnx.load(folder / name, load_external_data=False).graph.initializer
            if item.external_data
        ]
        assert all(start + size <= following for (start, size), (following, _) in itertools.pairwise(used))


def test_a_layer_alone_gives_what_it_gives_in_the_model(tmp_path: Path) -> None:
    model, graph, space, _ = net(1)
    candidate = space.candidate({"weight_bits:blocks.0.conv1": 8, "rank_ratio:blocks.0.conv2": 0.25})
    student = quick_student(model, graph, candidate, INPUTS)
    file = onnx.load(export(student, INPUTS, tmp_path))
    cutter = LayerExtractor(file)
    x = torch.randn(1, 32, 8, 8).abs()
    block = student.blocks[0]  # type: ignore[index]
    for path, norm, relu, quantized in (
        ("blocks.0.conv1", "blocks.0.bn1", True, True),
        ("blocks.0.conv2", "blocks.0.bn2", False, False),
    ):
        part = cutter.cut(path, norm, relu, quantized)
        assert part is not None
        (tmp_path / "part.onnx").write_bytes(part.SerializeToString())
        session = runtime_named("onnxruntime").load(tmp_path / "part.onnx")
        name = path.rpartition(".")[2]
        with torch.no_grad():
            expected = getattr(block, name.replace("conv", "bn"))(getattr(block, name)(x))
        np.testing.assert_allclose(session.predict((x,)), expected.relu() if relu else expected, atol=0.05)
    assert cutter.cut("nothing", None, False, False) is None


def test_integer_layers_on_sequences_are_cut_with_the_nodes_between_quantizer_and_kernel(tmp_path: Path) -> None:
    """Their rows are laid end to end by nodes that have no name."""
    torch.manual_seed(0)
    model, inputs = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Linear(32, 8)), (torch.randn(1, 5, 16),)
    graph = inspect_model(model, inputs)
    student = quick_student(model, graph, Candidate(weight_bits={"0": 8, "1": 8}), inputs)
    part = LayerExtractor(onnx.load(export(student, inputs, tmp_path))).cut("1", None, False, False)
    assert part is not None
    (tmp_path / "part.onnx").write_bytes(part.SerializeToString())
    hidden = student[0](inputs[0])  # type: ignore[index]
    session = runtime_named("onnxruntime").load(tmp_path / "part.onnx")
    with torch.no_grad():
        np.testing.assert_allclose(session.predict((hidden.detach(),)), student[1](hidden), atol=0.05)  # type: ignore[index]


def test_an_interrupted_plan_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.onnx")}
    (folder / "plan.json").unlink()
    monkeypatch.setattr(plan, "MAX_EXTRA", 1)
    write_plan(task(), net(1)[2], folder, PlanSettings(n_candidates=N_CANDIDATES))
    assert {file.name: file.stat().st_mtime_ns for file in folder.glob("*.onnx")} == before


def test_covering_takes_what_is_new() -> None:
    rows: list[list[str | None]] = [["a", "b"], ["a", "c", "d"], ["c"], [None, "e"]]
    assert covering(rows, {"a", "b"}, 10) == [1, 3]
    assert covering(rows, set(), 1) == [1]


# ------------------------------------------------------------------------------------------------- measuring, in theory


class Clock:
    """Timings that are made up: a ratio by file, a reference that may be slowed down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[str] = []
        self.reference_ms: Iterator[float] | None = None
        self.spread = 0.01
        monkeypatch.setattr(on_device, "time_pair", self.time_pair)
        monkeypatch.setattr(on_device.time, "sleep", lambda _: None)

    def open(self, file: Path) -> Any:
        self.opened.append(file.name)
        return file.name

    def time_pair(self, run: str, reference: str, n_rounds: int) -> PairedTiming:
        reference_ms = next(self.reference_ms) if self.reference_ms is not None and run != reference else 1.0
        ratio = 1.0 if run == reference else 0.2 + (hash(run) % 100) / 100
        busy = reference_ms > 1.1
        return PairedTiming(ratio * (1.3 if busy else 1), ratio * self.spread, ratio, reference_ms, n_rounds, 9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_model_comes_out_and_an_interrupted_measurement_goes_on(folder: Path, clock: Clock) -> None:
    output = folder / "measured.json"
    measure_folder(folder, output, MeasureSettings(seconds=-1), opener=clock.open)
    assert not read_json(output)["complete"]
    n_files = len(read_json(folder / "plan.json")["files"])
    results = measure_folder(folder, output, opener=clock.open)
    assert len(results["measured"]) == n_files
    n_opened = len(clock.opened)
    measure_folder(folder, output, opener=clock.open)
    assert len(clock.opened) == n_opened + 1, "only the reference is loaded again"
    model = model_of(read_json(folder / "plan.json"), results)
    assert model.baseline_ms == 1.0
    candidates = [candidate for candidate, _ in model.measured]
    assert len(candidates) == N_CANDIDATES
    assert np.isfinite(model.interval(candidates)).all()
    assert model.n_outside(candidates).sum() == 0
    with pytest.raises(InputError, match="the results are of plan"):
        model_of({**read_json(folder / "plan.json"), "digest": "other"}, results)


def test_a_busy_moment_is_measured_again(folder: Path, clock: Clock) -> None:
    n_files = len(read_json(folder / "plan.json")["files"])
    clock.reference_ms = iter([1.0] * (n_files - 4) + [1.5] * 4 + [1.0] * 100)
    results = measure_folder(folder, folder / "measured.json", opener=clock.open)
    expected = {name: 0.2 + (hash(name) % 100) / 100 for name in results["measured"]}
    assert converged(results) == pytest.approx(expected)


def test_a_noisy_machine_is_refused_with_the_reason(folder: Path, clock: Clock) -> None:
    clock.spread = 0.5
    with pytest.raises(MeasurementError, match=r"must be idle, but .* off by 50%.*load average .*--force"):
        measure_folder(folder, folder / "measured.json", opener=clock.open)
    assert measure_folder(folder, folder / "measured.json", MeasureSettings(force=True), opener=clock.open)["complete"]


def test_noise_in_between_is_refused(folder: Path, clock: Clock) -> None:
    n_files = len(read_json(folder / "plan.json")["files"])
    clock.reference_ms = iter([1.0] * (n_files // 2) + [2.0] * 10_000)
    with pytest.raises(MeasurementError, match="never measured undisturbed"):
        measure_folder(folder, folder / "measured.json", opener=clock.open)


def test_a_drifting_clock_is_reported(folder: Path, clock: Clock) -> None:
    clock.reference_ms = (1.0 + 0.002 * i for i in range(10_000))
    results = measure_folder(folder, folder / "measured.json", MeasureSettings(force=True), opener=clock.open)
    assert clock_drift(results) > 0.05
    results["reference_ms"] = list(np.linspace(1, 1.5, 100))
    assert "drifted by +4" in on_device.summary(results)
    results["reference_ms"] = [1.0] * 100
    assert "drifted" not in on_device.summary(results)


def test_repeatability_is_the_spread_between_passes() -> None:
    figures = {"ratio": [1.0, 1.1, 9.0], "spread": [0.01, 0.01, 0.5], "reference_ms": [1.0, 1.0, 1.0]}
    results = {"reference_ms": [1.0, 1.0, 1.0], "measured": {"a": figures}}
    assert repeatability(results) == pytest.approx(np.std([1.0, 1.1], ddof=1) / 1.05)
    assert converged(results) == {"a": pytest.approx(1.05)}


def test_results_of_another_machine_are_not_mixed(folder: Path, clock: Clock) -> None:
    output = folder / "measured.json"
    measure_folder(folder, output, opener=clock.open)
    results = read_json(output)
    results["version"] = "0.1"
    write_json(output, results)
    with pytest.raises(InputError, match="has version '0.1', but here it is"):
        measure_folder(folder, output, opener=clock.open)


def test_too_few_candidates(folder: Path, clock: Clock) -> None:
    results = measure_folder(folder, folder / "measured.json", opener=clock.open)
    planned_ = read_json(folder / "plan.json")
    planned_["candidates"] = dict(list(planned_["candidates"].items())[:5])
    with pytest.raises(InputError, match="at least 12 candidates must be measured, but got 5"):
        model_of(planned_, json.loads(json.dumps(results)))


def test_the_script_of_a_bundle_needs_no_torch(folder: Path, tmp_path: Path) -> None:
    """Run by a Python in which torch, onnx and this package cannot be imported."""
    script = write_script(folder)
    blocked = tmp_path / "blocked"
    for name in ("torch", "ray", "onnx", "optuna"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text("raise ImportError('not on this device')", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(blocked)}
    command = [sys.executable, str(script), "--force", "--seconds", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = read_json(folder / "measured.json")
    assert results["runtime"] == "onnxruntime"
    assert results["device"]["cpu"]
    assert len(results["measured"]) >= 1
    assert "files on onnxruntime" in done.stdout


@pytest.mark.slow
def test_the_script_of_a_bundle_runs_where_only_numpy_and_the_runtime_are_installed(
    folder: Path, tmp_path: Path
) -> None:
    script, python = write_script(folder), tmp_path / "venv" / "bin" / "python"
    venv.create(tmp_path / "venv", with_pip=True)
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "numpy", "onnxruntime"], capture_output=True, text=True, check=False
    )
    if installed.returncode:
        pytest.skip(f"needs a package index: {installed.stderr[-200:]}")
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    missing = subprocess.run([python, "-c", "import torch"], env=bare, capture_output=True, check=False)
    assert missing.returncode != 0
    done = subprocess.run([python, script, "--force"], env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model = profile_of(folder, folder / "measured.json")
    assert len(model.measured) == N_CANDIDATES
    assert model.facts()["device"]["cpu"]


def test_check_reports_and_draws() -> None:
    model = LatencyModel(made_up_table())
    result = check_by_leaving_out(model)
    figures = result.figures()
    assert figures["n"] == 60
    assert figures["mape"] < 0.05 < figures["naive_mape"]
    assert figures["spearman"] > 0.95
    drawing = ElementTree.fromstring(result.svg("a <b>"))  # noqa: S314
    assert sum(element.tag.endswith("circle") for element in drawing.iter()) == 60
    candidates, ratios = zip(*model.measured, strict=True)
    perfect = check_on(model, candidates, model.ratios(candidates))
    assert perfect.figures()["mape"] == 0
    assert perfect.figures()["in_interval"] == 1
    assert len(ratios) == 60


def test_the_note_of_a_files_precision_is_read_on_the_device_too() -> None:
    compiled_session = pytest.importorskip("autocompress.runtimes.openvino_backend", reason="openvino is not installed")
    assert on_device.PRECISION_NOTE == compiled_session._NOTE


def test_the_runtimes_of_plans_are_those_that_can_be_opened() -> None:
    assert set(MEASURABLE) == set(on_device._OPENERS)
