"""`autocompress doctor` as a user types it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import Any

import pytest

from autocompress.cli import main
from autocompress.doctor.packages import Package
from autocompress.doctor.probe import LIBRARIES
from autocompress.doctor.probing import Probes
from autocompress.doctor.surroundings import Folder, Load
from tests.doctor.test_examination import examined


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Changes to what the doctor finds, made before the command runs."""
    changes: dict[str, Any] = {}
    monkeypatch.setattr("autocompress.doctor.examination.examine", lambda: examined(**changes))
    monkeypatch.setenv("COLUMNS", "200")
    return changes


def line_of(name: str, text: str) -> str:
    """The row of that name."""
    found = re.search(rf"^.*\b{re.escape(name)} {{2,}}.*$", text, re.MULTILINE)
    assert found is not None, f"no {name} in {text}"
    return found[0]


def test_all_is_well(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "executes weight_bits 8" in line_of("openvino", text)
    assert "quiet enough" in line_of("load", text) and "saturate" in line_of("8 bits", text)
    assert 'optional: pip install "autocompress[timm]"' in line_of("timm", text)
    assert text.splitlines()[-1] == "autocompress can search here"


def test_what_is_not_well_is_in_its_line(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    found |= {
        "states": {"openvino": "failed", "torch": "unknown"},
        "load": Load(1.9, 2),
        "folders": [Folder("runs", "/[red]x", 0.5)],
        "packages": (),
    }
    assert main(["doctor"]) == 0, "the core works"
    text = capsys.readouterr().out
    assert " failed " in line_of("openvino", text) and "busy" in line_of("load", text)
    assert " low " in line_of("runs", text) and "/[red]x" in line_of("runs", text), "names are not markup"
    assert "without being installed" in line_of("needed", text)
    assert text.splitlines()[-1] == "autocompress can search here; not known: torch"


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"]])
def test_a_core_that_cannot_run_is_exit_code_2(
    arguments: list[str], found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found |= {"states": {"onnxruntime": "failed"}, "packages": (Package("scipy", "", None),)}
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert "cannot run here: scipy is not installed; onnxruntime: as it is" in shown.err
    assert "can search here" not in shown.out


def test_json_is_all_that_is_printed(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    found |= {"probes": Probes((), None)}
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(examined(**found).to_dict()))


def test_on_this_machine_it_ends_in_time_and_knows_the_runtimes() -> None:
    began = time.monotonic()
    command = [sys.executable, "-m", "autocompress", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert time.monotonic() - began < 20, "15 on an idle machine"
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    states = {probe["name"]: probe["state"] for probe in data["runtimes"]}
    assert set(states) == {name for names in LIBRARIES.values() for name in names}
    assert states["optuna"] == states["ray"] == "ok"
    assert {states["onnxruntime"], states["torch"]} <= {"ok", "unknown"}, "unknown where the machine is busy"
