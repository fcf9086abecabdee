"""The engine's own 8-bit file in a run's folder: it runs, its figures are its own, and it is made once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.evaluation import evaluate_session
from autocompress.publishing import engine_peer
from autocompress.publishing.engine_peer import measure_engine_peer
from autocompress.results.run_folder import RunFolder, RunInfo
from autocompress.runtimes import runtime_named
from tests.execution.test_trial import context_of


def test_the_file_is_measured_once_and_its_figures_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(tmp_path, runtime="onnxruntime")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.reference.write_bytes(context.reference)
    info = RunInfo("tiny", None, context.settings, context.objectives, "0", "0", half_range_weights=True)
    peer = measure_engine_peer(context, folder, info)
    assert peer is not None
    assert sorted(path.name for path in folder.peer.iterdir()) == ["model.onnx", "peer.json"]
    session = runtime_named("onnxruntime").load(folder.peer / peer.file)
    for split in ("selection", "test"):
        assert evaluate_session(session, context.task, split)[0] == peer.metrics[split]
    assert peer.latency.ratio > 0 and peer.size_mib < len(context.reference) / 2**20

    def again(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(engine_peer, "quantize_with_engine", again)
    assert measure_engine_peer(context, folder, info) == peer
    elsewhere = replace(info, settings=replace(info.settings, latency_resource="device", ray_address="auto"))
    assert measure_engine_peer(context, folder, elsewhere) is None


def test_a_runtime_without_a_tool_has_no_peer(tmp_path: Path) -> None:
    context = context_of(tmp_path, runtime="onnxruntime")
    info = RunInfo("tiny", None, replace(context.settings, runtime="torch"), context.objectives, "0", "0")
    assert measure_engine_peer(context, RunFolder(tmp_path), info) is None
