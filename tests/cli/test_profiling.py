"""`autocompress profile` and `search --profile` as a user types them; nothing is timed here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autocompress.cli import main
from autocompress.config import SearchSettings
from autocompress.latency import LatencyModel
from autocompress.latency.table import Table
from tests.latency.nets import HEAD, made_up_table

TASK = """
import torch
from torch import nn
from autocompress import SupervisedTask
batch = (torch.randn(8, 3), torch.zeros(8, dtype=torch.long))
task = SupervisedTask(nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2)), [batch], [batch], [batch])
"""


@pytest.fixture
def task(tmp_path: Path) -> str:
    (tmp_path / "tiny.py").write_text(TASK)
    return f"{tmp_path / 'tiny.py'}:task"


def profiled(monkeypatch: pytest.MonkeyPatch, table: Table) -> list[dict[str, Any]]:
    """Lets `profile` return a made-up table; returns what it was called with."""
    calls: list[dict[str, Any]] = []

    def profile(task: str, space: str, **settings: Any) -> LatencyModel:
        calls.append({"task": task, "space": space, **settings})
        return LatencyModel(table)

    monkeypatch.setattr("autocompress.latency.profiling.profile", profile)
    return calls


def test_a_profile_is_saved_checked_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = profiled(monkeypatch, made_up_table())
    output, drawing = tmp_path / "device.json", tmp_path / "check.svg"
    flags = [
        "--runtime",
        "openvino",
        "--threads",
        "2",
        "--batch",
        "4",
        "--candidates",
        "30",
        "--passes",
        "2",
        "--force",
    ]
    assert main(["profile", "digits", "--space", "s", *flags, "-o", str(output), "--check", str(drawing)]) == 0
    asked = {
        "runtime": "openvino",
        "n_threads": 2,
        "batch": 4,
        "n_candidates": 30,
        "n_passes": 2,
        "force": True,
        "reuse": True,
    }
    assert calls == [{"task": "digits", "space": "s", "folder": None, "show": True, **asked}]
    assert LatencyModel.load(output).baseline_ms == 2.0
    text = capsys.readouterr().out
    assert "device.json: made up on onnxruntime 1.0, 2.000 ms uncompressed" in text and "60 candidates timed" in text
    assert "60 candidates, leave-one-out: MAPE" in text and "Spearman 0.9" in text
    assert "drifted" not in text
    assert drawing.read_text(encoding="utf-8").count("<circle") == 60


def test_a_drifting_clock_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    profiled(monkeypatch, replace(made_up_table(), head={**HEAD, "clock_drift": -0.23}))
    assert main(["profile", "digits", "-o", str(tmp_path / "device.json")]) == 0
    assert "the device's clock drifted by -23%" in capsys.readouterr().out


def test_bad_input_is_one_message(tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "measured.json"
    cut.write_text('{\n "plan":\n', encoding="utf-8")
    (tmp_path / "plan.json").write_text("{}", encoding="utf-8")
    bundle = ["--bundle", str(tmp_path), "--measured", str(cut), "-o", str(tmp_path / "device.json")]
    for arguments, message in (
        (["profile", task], "name it with -o device.json"),
        (["profile", task, *bundle], "line 3 is not JSON"),
        (["profile", task, "--runtime", "torch", "-o", str(tmp_path / "device.json")], "is made of ONNX files"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_search_refuses_a_profile_of_another_device_unless_forced(
    tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "device.json"
    LatencyModel(made_up_table()).save(path)
    search = ["search", task, "--profile", str(path), "--run-dir", str(tmp_path / "run")]
    assert main(search) == 2
    assert "the profile is of version '1.0', not" in capsys.readouterr().err
    assert main([*search, "--force-profile"]) == 2
    assert "the profile is of another model" in capsys.readouterr().err, "which no flag makes right"
    asked: list[SearchSettings] = []
    monkeypatch.setattr("autocompress.api.run_new", lambda task, settings, run_dir: asked.append(settings))
    monkeypatch.setattr("autocompress.cli.searching.show", lambda run_dir: None)
    main(search)
    main([*search, "--force-profile"])
    assert [settings.force_latency_model for settings in asked] == [False, True]
