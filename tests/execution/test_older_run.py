"""A run that version 0.1.0 wrote, cut off by `kill -9`: it opens, resumes, reports and gives its points."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from autocompress import SupervisedTask, resume
from autocompress.cli import main
from autocompress.report.status import status_lines
from autocompress.results.records import read_records
from autocompress.results.run_folder import RunFolder

ARCHIVE = Path(__file__).parents[1] / "data" / "run_0_1_0.tar.xz"
N_ENDED = 9


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.relu(x + self.conv2(torch.relu(self.conv1(x))))
        return out


def task_of(run: Path) -> SupervisedTask:
    """The task as it was then; the uncompressed model is that of trial 0."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images).float().reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
    parts = {"train": slice(0, 1200), "selection": slice(1200, 1500), "test": slice(1500, None)}
    loaders = {name: DataLoader(TensorDataset(x[part], y[part]), batch_size=64) for name, part in parts.items()}
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        Block(16),
        Block(16),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    model.load_state_dict(load_file(run / "trials" / "trial_0000" / "weights.safetensors"))
    return SupervisedTask(model.eval(), loaders["train"], loaders["selection"], loaders["test"])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def test_it_is_read_as_it_was_written(run: Path) -> None:
    read = RunFolder(run).read()
    assert len(read.records) == N_ENDED
    assert read.info.objectives.metric == "accuracy"
    assert read.info.objectives.is_maximized
    assert read.info.objectives.latency_budgets == (0.6, 0.4)
    assert read.info.objectives.metric_limit == json.loads((run / "run.json").read_text())["min_score"]
    assert read.front.points
    assert "not running" in status_lines(RunFolder(run))[0]


def test_it_resumes_reports_and_gives_a_point_that_runs(run: Path, tmp_path: Path) -> None:
    before = read_records(RunFolder(run).records)
    front = resume(run, task=task_of(run), show_progress=False, n_workers=1, n_trials=N_ENDED + 2, polish_points=0)
    after = {record.number: record for record in read_records(RunFolder(run).records)}
    assert len(after) == N_ENDED + 2
    for record in before:
        assert after[record.number].candidate == record.candidate
        assert after[record.number].metrics == record.metrics
    assert front.points
    assert all(point.file is not None for point in front.points)
    assert (run / "report.html").is_file()
    assert main(["report", str(run), "--text"]) == 0
    picked = tmp_path / "model"
    assert main(["pick", str(run), "--knee", "-o", str(picked)]) == 0
    ran = subprocess.run([sys.executable, picked / "run.py"], capture_output=True, text=True, check=True)
    assert "as measured" in ran.stdout
