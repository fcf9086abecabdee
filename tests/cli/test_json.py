"""`--json`: one object on the standard output, with the keys that docs/agents.md names."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autocompress.cli import _parser, main
from autocompress.config import SearchSettings
from autocompress.report.comparison import comparison_data
from autocompress.results.columns import row
from autocompress.results.peer import Peer
from autocompress.results.records import Latency, TrialRecord, without_nan, write_records
from autocompress.results.run_folder import RunFolder, RunInfo
from autocompress.space.candidate import Candidate
from tests.doctor.test_examination import examined
from tests.report.searches import complete
from tests.shared.objectives import of_accuracy
from tests.shared.points import Point

PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")
TASK = """
import torch
from torch import nn
from autocompress import SupervisedTask
print("loading my data ...")
batch = (torch.randn(8, 3), torch.zeros(8, dtype=torch.long))
task = SupervisedTask(nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2)), [batch], [batch], [batch])
"""


def keys_of(command: str) -> list[str]:
    """The keys that the page's table for a command names, in order."""
    _, section = PAGE.split(f"\n## `{command}`\n")
    return re.findall(r"^\| `(\w+)` \|", section.partition("\n## ")[0], re.MULTILINE)


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert data["schema"] == 1
    return data


@pytest.fixture
def run(tmp_path: Path, float_point: Point) -> RunFolder:
    """The uncompressed model and one point with its files, and a peer."""
    point, record = float_point
    folder = RunFolder(tmp_path / "run")
    folder.front.mkdir(parents=True)
    shutil.copytree(point, folder.point(record.name))
    layers = ({"path": "conv1", "kind": "conv2d", "n_params": 9, "n_macs": 9},)
    folder.write_info(RunInfo("tiny", "tiny", SearchSettings(n_trials=2), of_accuracy(None, 0.05), "m", "s", layers))
    assert record.file is not None
    fast = replace(record.file, latency=Latency(0.5, 0.01, 0.025, 9))
    best = replace(record, candidate=Candidate(weight_bits={"conv1": 8}), file=fast)
    write_records(folder.records, [complete(0, Candidate(), 1.0, 0.4, "baseline"), best])
    folder.peer.mkdir()
    (folder.peer / "model.onnx").write_bytes(b"a file")
    Peer("int8 by a tool", "model.onnx", {"test": {"accuracy": math.nan}}, Latency(0.5, 0.0, 0.02, 9), 0.1).write(
        folder.peer
    )
    return folder


def test_every_command_of_the_page_is_one_that_the_command_line_takes() -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    lines = [line.split()[1:] for line in block.splitlines() if line.startswith("autocompress ")]
    assert len(lines) == 6
    for line in lines:
        _parser().parse_args(line)


def test_python_of_the_page_compiles() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    compile(block, "agents.md", "exec")


def test_doctor_has_the_keys_of_the_page() -> None:
    assert list(examined().to_dict()) == keys_of("doctor")


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tasks.py"
    file.write_text(TASK)
    arguments = ["inspect", f"{file}:task", "--space", "default", "--runtime", "torch", "--json"]
    assert main(arguments) == 0
    data = printed(capsys)  # what the task's own code prints is not in it
    assert sorted(data) == sorted(keys_of("inspect"))
    assert data["task"] == f"{file}:task" and data["notes"] == []
    assert [(layer["path"], layer["weight_shape"]) for layer in data["layers"]] == [("0", [32, 3]), ("2", [2, 32])]
    assert data["n_params"] == 32 * 3 + 32 + 2 * 32 + 2
    assert [group["producers"] for group in data["groups"]] == [["0"]]
    assert data["runtime"]["executes"]["32"]["linear"] == "float32"
    n_candidates = math.prod(len(knob["choices"]) for knob in data["space"]["knobs"])
    assert data["space"]["log10_size"] == pytest.approx(math.log10(n_candidates))
    assert main([*arguments[:2], "--json"]) == 0
    data = printed(capsys)
    assert data["runtime"] is None and data["space"] is None


def test_status(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run.path), "--json"]) == 0
    data = printed(capsys)
    assert list(data) == keys_of("status")
    assert (data["state"], data["n_trials"], data["n_trials_wanted"], data["driver"]) == ("stopped", 2, 2, None)
    front = run.read().front
    assert data["front"]["n_points"] == len(front.points)
    assert data["front"]["is_measured"] == all(point.file is not None for point in front.points)
    assert data["front"]["best"] == without_nan(row(front.pick(), "accuracy"))
    assert main(["status", str(run.path), "--json", "--watch"]) == 2
    assert "leave --watch out" in capsys.readouterr().err


def test_compare(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(run.path), "7", "0", "--json"]) == 0
    data = printed(capsys)
    assert list(data) == keys_of("compare")
    assert data == json.loads(json.dumps(without_nan(comparison_data(run.read(), [7, 0]))))
    assert [trial["trial"] for trial in data["trials"]] == [7, 0]
    assert data["trials"][0]["candidate"]["weight_bits"] == {"conv1": 8}
    assert data["trials"][1]["what"] == "uncompressed"
    assert data["layers_that_differ"] == [{"layer": "conv1", "choices": ["8-bit", "as it was"]}]
    assert main(["compare", str(run.path), "99", "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_pick(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "model"
    assert main(["pick", str(run.path), "--trial", "7", "-o", str(output), "--json"]) == 0
    data = printed(capsys)
    record: TrialRecord = run.read().front.pick(trial=7)
    figures = without_nan(row(record, "accuracy"))
    assert {key: data[key] for key in figures} == figures
    assert set(data) - set(figures) == set(keys_of("pick"))
    assert data["model"] == str(output) and Path(data["run"]).is_file()


def test_pick_of_a_peer(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "model"
    assert main(["pick", str(run.path), "--peer", "-o", str(output), "--json"]) == 0
    data = printed(capsys)
    line = next(line for line in PAGE.replace("\n", " ").split("With `--peer` the keys are ")[1:])
    named = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", line.partition(".")[0]))
    assert set(data) == set(named)
    assert Path(data["file"]).read_bytes() == b"a file"
    assert data["metrics"] == {"test": {"accuracy": None}}
    for conditions in (["--trial", "0"], ["--min-accuracy", "0.0"], ["--knee"], ["--latency-budget", "1x"]):
        assert main(["pick", str(run.path), "--peer", *conditions, "-o", str(tmp_path / "new")]) == 2
        assert "stands alone" in capsys.readouterr().err
