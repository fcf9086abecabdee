"""Writing ONNX: the exporter's table of translations is read once, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter import _registration

from autocompress.runtimes import onnx_export
from autocompress.runtimes.onnx_export import write_onnx


def test_the_table_of_translations_is_read_once_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = _registration.ONNXRegistry
    before = vars(owner)["from_torchlib"]
    model, inputs = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), (torch.rand(1, 4),)
    monkeypatch.setattr(onnx_export, "_TABLES", {})
    for name in ("first", "second"):
        write_onnx(model, inputs, tmp_path / name)
    assert len(onnx_export._TABLES) == 1
    assert vars(owner)["from_torchlib"] is before
    monkeypatch.setattr(owner, "from_torchlib", before)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_an_exporter_without_that_table_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = nn.Linear(4, 3).eval(), (torch.rand(1, 4),)
    write_onnx(model, inputs, tmp_path / "kept")
    monkeypatch.setattr(onnx_export, "_registration", object())
    write_onnx(model, inputs, tmp_path / "plain")
    assert (tmp_path / "kept").read_bytes() == (tmp_path / "plain").read_bytes()
