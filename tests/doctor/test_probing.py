"""Libraries that crash, hang or print what they like: each has its say, and nothing else is lost."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from autocompress.doctor.probe import LIBRARIES
from autocompress.doctor.probing import Probe, Probes, probe_all

_HEAD = """
import os, pathlib, sys, time
from autocompress.doctor import probe
probe.importlib.import_module = lambda name: None
def findings(library):
    name = probe.LIBRARIES[library][0]
    yield {"name": name, "state": "ok", "text": "imports"}
"""
_TAIL = "\nprobe._findings = findings\nprobe.main(FOLDER)"


def program(body: str, whole: bool = False) -> str:
    """A program like the real one, in which each library's first try goes well, and then does `body`."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return body if whole else f"{_HEAD}{lines}{_TAIL}"


def tried(body: str, seconds: float = 30.0, whole: bool = False) -> Probes:
    def code(folder: Path) -> str:
        return f"import sys; sys.path[:] = {sys.path!r}; FOLDER = {str(folder)!r}\n{program(body, whole)}"

    return probe_all(seconds, code)


def of(found: Probes, library: str) -> list[Probe]:
    return [probe for probe in found.found if probe.library == library]


def test_a_crash_takes_only_what_comes_after_it() -> None:
    found = tried('if library == "torch":\n    sys.stderr.write("\\nlast words\\n"); sys.stderr.flush(); os.abort()')
    assert [probe.state for probe in of(found, "torch")] == ["ok", *["failed"] * (len(LIBRARIES["torch"]) - 1)]
    assert of(found, "torch")[1].text == "its process ended with SIGABRT: last words"
    assert of(found, "openvino")[0] == Probe("openvino", "openvino", "ok", "imports")


def test_an_error_is_shown_by_its_last_line() -> None:
    found = tried('if library == "onnxruntime":\n    raise SystemExit("no licence")')
    assert of(found, "onnxruntime")[1].text == "its process ended with exit code 1: SystemExit: no licence"


def test_what_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    child = f"import pathlib, time; time.sleep(4); pathlib.Path({str(mark)!r}).touch()"
    body = (
        f"if library == 'openvino':\n    return\nimport subprocess\nsubprocess.Popen([sys.executable, '-c', {child!r}])"
    )
    began = time.monotonic()
    found = tried(f"{body}\ntime.sleep(60)", seconds=3.0)
    assert time.monotonic() - began < 10
    assert of(found, "search")[0].state == "ok"
    assert of(found, "search")[1].state == "unknown"
    assert "within 3 s" in of(found, "search")[1].text
    time.sleep(max(0.0, began + 8 - time.monotonic()))
    assert not mark.exists()


def test_what_a_library_prints_is_no_finding() -> None:
    found = tried('os.write(1, b"Welcome!\\n[1]\\n{}\\n")')
    assert {probe.state for probe in of(found, "search")} == {"ok", "failed"}
    assert found.accelerators is None, "nothing was said of them"


def test_a_program_that_never_starts_fails_for_all() -> None:
    found = tried('raise ImportError("libtorch.so is missing")', whole=True)
    assert [probe.name for probe in found.found] == [name for names in LIBRARIES.values() for name in names]
    assert {probe.state for probe in found.found} == {"failed"}
    assert "libtorch.so is missing" in found.found[0].text


def test_accelerators_are_those_that_torch_sees() -> None:
    line = json.dumps({"name": "accelerators", "state": "ok", "text": "cuda:0 (H100)"})
    assert tried(f"if library == 'torch':\n    yield {line}").accelerators == "cuda:0 (H100)"


@pytest.mark.parametrize("seconds", [0.01])
def test_a_deadline_before_anything_began_leaves_all_unknown(seconds: float) -> None:
    assert {probe.state for probe in probe_all(seconds).found} == {"unknown"}
