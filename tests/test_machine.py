"""What is said of this machine agrees with what the system says, and names nobody."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import numpy as np
import onnxruntime
import optuna
import pytest
import torch

from autocompress import machine
from autocompress.machine import cpu_features, describe_machine, describe_versions


def test_facts_of_the_machine() -> None:
    found = describe_machine()
    assert set(found) == {"cpu", "cores", "memory", "governor", "system"}
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["cores"] == str(os.cpu_count())
    assert platform.system() in found["system"]


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux's /proc")
def test_facts_are_those_of_proc() -> None:
    found = describe_machine()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found["memory"] == f"{pages // 1024} kB"
    models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert found["cpu"] == (models[0] if models else platform.processor() or platform.machine())


def test_a_machine_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, *_: object, **__: object) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    found = describe_machine()
    assert found["cpu"]
    assert (found["memory"], found["governor"]) == ("unknown", "unknown")


def test_versions_are_those_that_are_imported() -> None:
    found = describe_versions()
    assert found["python"] == platform.python_version()
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert found["numpy"] == np.__version__
    assert found["onnxruntime"] == onnxruntime.__version__
    assert found["optuna"] == optuna.__version__


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_LIBRARIES", ("numpy", "no-such-library"))
    assert describe_versions() == {"python": platform.python_version(), "numpy": importlib.metadata.version("numpy")}


@pytest.mark.parametrize("line", ["flags\t\t: fpu avx2 fma", "Features\t: avx2 fma fpu"])
def test_instruction_sets_are_those_of_proc(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_text", lambda file: f"processor\t: 0\n{line}\n")
    assert cpu_features() == {"fpu", "avx2", "fma"}
    monkeypatch.setattr(machine, "_text", lambda file: "")
    assert cpu_features() == frozenset()
