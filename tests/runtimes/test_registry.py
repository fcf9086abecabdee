"""Runtimes are found by name or by import path; what cannot be found says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autocompress.errors import AutocompressError, InputError, MissingExtraError
from autocompress.runtimes import RUNTIMES, runtime_named
from autocompress.runtimes.onnxruntime_backend import OnnxRuntime


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_every_listed_runtime_has_its_own_name(name: str) -> None:
    if name == "openvino":
        pytest.importorskip("openvino", reason="needs the openvino extra")
    assert runtime_named(name).name == name


def test_a_runtime_by_its_path() -> None:
    assert type(runtime_named("autocompress.runtimes.onnxruntime_backend:OnnxRuntime")) is OnnxRuntime


def test_a_runtime_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = "".join(f"    def {name}(self, *_): ...\n" for name in ("capabilities", "export", "load"))
    others = "class Less:\n    name = 'less'\n\ndef raises():\n    raise OSError(3)\n"
    (tmp_path / "my_engine.py").write_text(f"class Mine:\n    name = 'mine'\n{methods}\n{others}")
    monkeypatch.syspath_prepend(tmp_path)
    assert runtime_named("my_engine:Mine").name == "mine"
    with pytest.raises(InputError, match="lacks capabilities, export, load"):
        runtime_named("my_engine:Less")
    with pytest.raises(InputError, match="must be a class without arguments"):
        runtime_named("my_engine:raises")
    with pytest.raises(InputError, match="no attribute 'Other'"):
        runtime_named("my_engine:Other")
    sys.modules.pop("my_engine")


def test_names_that_nobody_has() -> None:
    with pytest.raises(InputError, match=r"must be one of \['onnxruntime'.*\] or package\.module:Class, but got 'tpu'"):
        runtime_named("tpu")
    with pytest.raises(MissingExtraError, match="'no_such_engine', which is not installed"):
        runtime_named("no_such_engine:Runtime")


@pytest.mark.parametrize("name", [":Runtime", ".relative:Runtime", "json:"])
def test_paths_that_cannot_be_imported(name: str) -> None:
    with pytest.raises(InputError, match="runtime"):
        runtime_named(name)


def test_a_module_that_fails_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_engine.py").write_text("raise ImportError('libengine.so.2: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AutocompressError, match=r"broken_engine.*libengine\.so\.2"):
        runtime_named("broken_engine:Runtime")
