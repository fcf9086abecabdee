"""What is tried: every runtime there is, by a model whose outputs are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autocompress.doctor import probe
from autocompress.doctor.probe import LIBRARIES, SEARCH, try_import, try_runtime
from autocompress.errors import MissingExtraError
from autocompress.runtimes import RUNTIMES, runtime_named


def test_every_runtime_is_tried_once() -> None:
    names = [name for library, names in LIBRARIES.items() if library != SEARCH for name in names]
    assert sorted(names) == sorted(RUNTIMES)


def test_the_outputs_are_those_of_the_model() -> None:
    expected = np.maximum(np.array(probe._INPUTS) @ np.array(probe._WEIGHTS), 0)
    np.testing.assert_array_equal(expected, np.array(probe._OUTPUTS))


@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_a_runtime_that_works_says_what_it_executes(name: str) -> None:
    found = try_runtime(name)
    assert (found["state"], found["text"]) == ("ok", "runs a tiny model")
    kernels = {str(item.precision): dict(item.kernels) for item in runtime_named(name).capabilities()}
    assert found["executes"] == kernels


class _Engine:
    """Stands for a runtime whose library does as it is told."""

    def __init__(self, outputs: torch.Tensor | Exception) -> None:
        self._outputs = outputs

    def capabilities(self) -> tuple[()]:
        return ()

    def load(self, file: Path) -> _Engine:
        assert file.is_file()
        return self

    def predict(self, inputs: Any) -> torch.Tensor:
        if isinstance(self._outputs, Exception):
            raise self._outputs
        return self._outputs


@pytest.mark.parametrize(
    ("outputs", "state", "text"),
    [
        (torch.tensor(probe._OUTPUTS) + 1e-3, "ok", "runs a tiny model"),
        (torch.tensor(probe._OUTPUTS) + 0.5, "failed", "wrong outputs: they are off by 0.5"),
        (torch.full((2, 3), torch.nan), "failed", "wrong outputs"),
        (RuntimeError("cannot open libcuda.so\nsecond line"), "failed", "RuntimeError: cannot open libcuda.so"),
        (MissingExtraError("needs a CUDA device"), "missing", "needs a CUDA device"),
    ],
)
def test_one_that_does_not_is_told_from_one_that_is_not_there(
    outputs: torch.Tensor | Exception, state: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.runtimes.runtime_named", lambda name: _Engine(outputs))
    found = try_runtime("onnxruntime")
    assert found["state"] == state and text in found["text"]
    assert "\n" not in found["text"]


def test_a_module_that_does_not_import_is_named() -> None:
    assert try_import("json")["state"] == "ok"
    found = try_import("no_such_module_at_all")
    assert found["state"] == "failed" and "no_such_module_at_all" in found["text"]
