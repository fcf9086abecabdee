"""A small search for OpenVINO: every point is a file of that runtime, compared with its student and counted in full."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import pytest
import torch

import autocompress as ac
from autocompress.results.records import read_records
from autocompress.results.run_folder import RunFolder
from autocompress.runtimes import runtime_named
from tests.shared.tasks import images, tiny_space, tiny_task

pytestmark = pytest.mark.usefixtures("brief_clock")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    folder = tmp_path_factory.mktemp("search") / "run"
    settings = {
        "n_trials": 6,
        "n_workers": 1,
        "distill": {"rungs": [0, 4]},
        "sensitivity": "fisher",
    }
    ac.search(
        tiny_task(),
        space=tiny_space(),
        runtime="openvino",
        run_dir=folder,
        show_progress=False,
        polish_points=0,
        **settings,
    )
    return folder


def test_every_point_runs_on_openvino_as_its_student_does(run_dir: Path) -> None:
    records = read_records(run_dir / "trials.jsonl")
    assert [record.error for record in records if record.state == "failed"] == []
    points = RunFolder(run_dir).read().front.points
    assert points  # how many depends on the clock: a net as small as this may gain nothing
    x = images(64, 4)[0]
    for record in points:
        assert record.file is not None and record.file.agreement >= 0.9
        folder = run_dir / "front" / record.name
        file = folder / "model.onnx"
        assert json.loads((folder / "manifest.json").read_text())["runtime"] == "openvino"
        found = runtime_named("openvino").load(file).predict((x,))
        with torch.no_grad():
            expected = ac.load(folder, tiny_task())(x)
        assert float((found - expected).norm() / expected.norm()) < 0.15  # what parity allows files with 8-bit layers


def test_sizes_are_of_the_file_as_stored_and_in_an_archive(run_dir: Path) -> None:
    rows = (run_dir / "front.csv").read_text().splitlines()
    columns = rows[0].split(",")
    assert "zip_size_mib" in columns
    for row in rows[1:]:
        cells = dict(zip(columns, row.split(","), strict=True))
        file = run_dir / "front" / f"trial_{int(cells['trial']):04d}" / "model.onnx"
        assert float(cells["size_mib"]) == pytest.approx(file.stat().st_size / 2**20)
        assert float(cells["zip_size_mib"]) == pytest.approx(len(zlib.compress(file.read_bytes())) / 2**20)
        assert not math.isnan(float(cells["memory_mib"]))
