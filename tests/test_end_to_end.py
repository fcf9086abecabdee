"""The main job on the README's own example: search, files, kill -9 and resume, pick, load."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pandas as pd
import pytest
import torch

import autocompress as ac
from autocompress.results.records import read_records

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's `my_model.py`."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    source = next(block for block in blocks if block.startswith("# my_model.py"))
    file = tmp_path_factory.mktemp("example") / "my_model.py"
    file.write_text(source)
    return file


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "autocompress", *map(str, arguments)]


@pytest.fixture(scope="module")
def killed_and_resumed(example: Path) -> Path:
    """A run whose driver was killed with -9 in the middle, then resumed."""
    run = example.parent / "run"
    search = _command(
        "search", f"{example}:task", "--run-dir", run, "--trials", 8, "--workers", 2, "--rungs", "0,10",
        "--latency-budget", "0.9x", "--polish-points", 0,
    )  # fmt: skip
    driver = subprocess.Popen(search, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    records = run / "trials.jsonl"
    deadline = time.monotonic() + 600
    while not (records.exists() and len(records.read_text().splitlines()) >= 4):
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()[0]
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    done = subprocess.run(_command("resume", run), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report.html" in done.stdout
    return run


def test_kill_and_resume_lose_nothing_and_count_nothing_twice(killed_and_resumed: Path) -> None:
    records = read_records(killed_and_resumed / "trials.jsonl")
    assert len(records) == 8
    assert [record.error for record in records if record.state == "failed"] == []
    digests = Counter(record.candidate.digest for record in records)
    assert max(digests.values()) == 1
    assert records[0].origin == "baseline" and any(record.origin == "uniform" for record in records)
    assert not (killed_and_resumed / "ray").exists()


def test_every_front_point_is_a_file_that_runs(killed_and_resumed: Path, example: Path) -> None:
    task = ac.load_task(f"{example}:task")
    table = pd.read_csv(killed_and_resumed / "front.csv")
    assert len(table) >= 1
    assert (killed_and_resumed / "report.html").stat().st_size > 10_000
    for _, row in table.iterrows():
        folder = killed_and_resumed / "front" / f"trial_{int(row['trial']):04d}"
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["numbers"]["latency"]["ratio"] == pytest.approx(row["latency_ratio"])
        session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        (name,) = [item.name for item in session.get_inputs()]
        n_right, n_samples = 0, 0

        def predict(
            inputs: tuple[torch.Tensor, ...], session: ort.InferenceSession = session, name: str = name
        ) -> torch.Tensor:
            outputs = [session.run(None, {name: sample[None].numpy()})[0] for sample in inputs[0]]
            return torch.from_numpy(np.concatenate(outputs))

        assert task.evaluate(predict, "test")["accuracy"] == pytest.approx(row["accuracy_test"])
        student = ac.load(folder, task)
        assert type(student) is torch.nn.Sequential
        for inputs in task.calibration_batches():
            agree = student(*inputs).argmax(1) == predict(inputs).argmax(1)
            n_right, n_samples = n_right + int(agree.sum()), n_samples + len(agree)
        assert n_right / n_samples >= 0.99


def test_a_loaded_model_gives_the_outputs_of_the_saved_one(killed_and_resumed: Path, example: Path) -> None:
    """The weights bit for bit; the outputs up to the rounding of a convolution that reads another memory layout."""
    task = ac.load_task(f"{example}:task")
    folder = killed_and_resumed / "front" / "trial_0000"
    student, model = ac.load(folder, task), task.build_model()
    inputs = next(iter(task.calibration_batches()))
    torch.testing.assert_close(student.state_dict(), model.state_dict(), rtol=0.0, atol=0.0)
    torch.testing.assert_close(student(*inputs), model(*inputs), rtol=1e-5, atol=1e-4)


def test_the_single_steps_of_the_readme(example: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    (steps,) = [block for block in blocks if "ac.measure_latency" in block]
    script = "import autocompress as ac\n" + steps.replace("my_model.py", str(example))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Measurement(value=" in done.stdout
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_pick_copies_the_point_and_report_prints_the_front(killed_and_resumed: Path, tmp_path: Path) -> None:
    picked = tmp_path / "model"
    done = subprocess.run(
        _command("pick", killed_and_resumed, "--latency-budget", "0.9x", "-o", picked),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    files = {"manifest.json", "model.onnx", "weights.safetensors", "layer_times.json", "examples.npz", "run.py"}
    assert {path.name for path in picked.iterdir()} == {*files, "README.md"}
    ran = subprocess.run([sys.executable, picked / "run.py"], capture_output=True, text=True, check=True, cwd="/")
    assert "as measured: 8 of 8" in ran.stdout
    assert "test accuracy" in done.stdout
    text = subprocess.run(
        _command("report", killed_and_resumed, "--text"), capture_output=True, text=True, check=True
    ).stdout
    assert "uncompressed" in text


def test_the_engines_own_file_is_beside_the_front_and_can_be_picked(killed_and_resumed: Path, tmp_path: Path) -> None:
    shown = subprocess.run(_command("report", killed_and_resumed, "--text"), capture_output=True, text=True, check=True)
    assert "without a search" in shown.stdout and "quantize_static" in shown.stdout
    picked = tmp_path / "model"
    done = subprocess.run(
        _command("pick", killed_and_resumed, "--peer", "-o", picked), capture_output=True, text=True, check=True
    )
    assert str(picked / "model.onnx") in done.stdout
    assert {path.name for path in picked.iterdir()} == {"model.onnx", "peer.json"}
    both = subprocess.run(
        _command("pick", killed_and_resumed, "--peer", "--knee", "-o", tmp_path / "b"), capture_output=True, text=True
    )
    assert both.returncode == 2 and "stands alone" in both.stderr


def test_compare_the_knee_and_a_figure(killed_and_resumed: Path, tmp_path: Path) -> None:
    compared = subprocess.run(_command("compare", killed_and_resumed, 0, 1), capture_output=True, text=True, check=True)
    assert "trial 0" in compared.stdout and "accuracy, test (file)" in compared.stdout
    picked = _command("pick", killed_and_resumed, "--knee", "-o", tmp_path / "knee")
    assert "run.py" in subprocess.run(picked, capture_output=True, text=True, check=True).stdout
    drawn = _command("report", killed_and_resumed, "--figure", tmp_path / "front.svg")
    subprocess.run(drawn, capture_output=True, check=True)
    assert (tmp_path / "front.svg").read_text().startswith("<svg")


def test_a_point_is_written_and_measured_for_another_runtime(killed_and_resumed: Path, tmp_path: Path) -> None:
    records = read_records(killed_and_resumed / "trials.jsonl")
    float_ones = [r for r in records if r.state == "complete" and not r.candidate.weight_bits]
    trial = float_ones[-1].number
    done = subprocess.run(
        _command("export", killed_and_resumed, trial, "--runtime", "torch", "-o", tmp_path / "torch"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ran = subprocess.run([sys.executable, tmp_path / "torch" / "run.py"], capture_output=True, text=True, check=True)
    assert "as measured: 8 of 8" in ran.stdout
    assert json.loads((tmp_path / "torch" / "manifest.json").read_text())["runtime"] == "torch"
    assert "torch" in (tmp_path / "torch" / "README.md").read_text()


def test_refining_adds_a_record_that_trained_longer(killed_and_resumed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(killed_and_resumed, tmp_path / "run"))
    before = read_records(run / "trials.jsonl")
    origin = min((r for r in before if r.state == "complete" and r.number), key=lambda r: r.metrics["accuracy"])
    done = subprocess.run(
        _command("refine", run, origin.number, "--epochs", 2), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    after = read_records(run / "trials.jsonl")
    (new,) = [record for record in after if record.origin == "refined"]
    assert len(after) == len(before) + 1 and new.number == max(record.number for record in after)
    assert new.candidate == origin.candidate and new.latency == origin.latency
    assert new.rungs[0].metrics == pytest.approx(dict(origin.metrics), abs=0.01), "it starts where the trial ended"
    assert new.metrics["accuracy"] == max(rung.metrics["accuracy"] for rung in new.rungs)
    on_front = new.number in set(pd.read_csv(run / "front.csv")["trial"])
    assert on_front == (run / "front" / new.name / "model.onnx").is_file()
    again = subprocess.run(_command("resume", run), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert [record.number for record in read_records(run / "trials.jsonl")] == [record.number for record in after]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_leaves_the_front_so_far_and_says_how_to_go_on(
    example: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    search = _command(
        "search", f"{example}:task", "--run-dir", run, "--trials", 200, "--workers", 2, "--rungs", "0,10",
        "--sensitivity", "fisher", "--polish-points", 0,
    )  # fmt: skip
    driver = subprocess.Popen(search, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    records = run / "trials.jsonl"
    deadline = time.monotonic() + 600
    while not (records.exists() and len(records.read_text().splitlines()) >= 4):
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()[0]
        time.sleep(0.05)
    driver.send_signal(number)
    output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 128 + number, output
    assert len(pd.read_csv(run / "front.csv")) >= 1
    assert "report.html" in output and "Traceback" not in output
    last = output.strip().splitlines()[-1]
    assert f"stopped by {number.name}" in last and f"`autocompress resume {run}` continues it" in last
    assert (run / "front").is_dir() == (number == signal.SIGINT), "files are measured where there is time for it"


def test_a_time_limit_ends_the_search_with_a_front(example: Path, tmp_path: Path) -> None:
    front = ac.search(
        ac.load_task(f"{example}:task"),
        run_dir=tmp_path / "run",
        n_trials=500,
        minutes=0.2,
        n_workers=2,
        sensitivity="fisher",
        distill={"rungs": [0, 5]},
        show_progress=False,
    )
    assert front.points and all(point.file is not None for point in front.points)
    assert len(read_records(tmp_path / "run" / "trials.jsonl")) < 500
    with pytest.raises(ac.AutocompressError, match="given as an object"):
        ac.resume(tmp_path / "run")
