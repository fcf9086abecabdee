"""A run of made-up records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest

from autocompress.config import SearchSettings
from autocompress.results.pareto import front_of
from autocompress.results.records import TrialRecord
from autocompress.results.run_folder import Run, RunFolder, RunInfo
from tests.report.searches import BUDGET, LAYERS, REFERENCE_MS, exported, records_of_a_search
from tests.shared.objectives import of_accuracy

MakeRun: TypeAlias = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a Run: `make_run()` of a whole search, or of the given records, layer names, task and budget.

    `details` are layers with all their keys.
    """

    def make(
        records: Sequence[TrialRecord] | None = None,
        layers: Sequence[str] = LAYERS,
        *,
        task: str = "cifar10:resnet20",
        budget: float | None = BUDGET,
        details: Sequence[Mapping[str, object]] | None = None,
    ) -> Run:
        records = records_of_a_search() if records is None else list(records)
        numbers = {point.number for point in front_of(records, of_accuracy(budget, REFERENCE_MS)).points}
        records = [
            exported(record, record.metrics["accuracy"] - 0.004)
            if record.number in numbers and _scored(record)
            else record
            for record in records
        ]
        info = RunInfo(
            task=task,
            task_spec=task,
            settings=SearchSettings(latency_budget=None if budget is None else f"{budget}x"),
            objectives=of_accuracy(budget, REFERENCE_MS),
            model_digest="0123456789ab",
            space_digest="ba9876543210",
            layers=tuple(
                details or ({"path": path, "kind": "conv2d", "n_params": 2304, "n_macs": 2_359_296} for path in layers)
            ),
            frozen=({"name": layers[0], "what": "branch", "reason": "it is not a residual branch"},),
            machine={"cpu": "a test's idea of a CPU", "cores": "2"},
            versions={"torch": "2.13.0"},
            command="autocompress search cifar10:resnet20 --latency-budget 0.6x",
            started="2026-01-02T03:04:05+00:00",
        )
        return Run(RunFolder(tmp_path), info, tuple(records), front_of(records, of_accuracy(budget, REFERENCE_MS)))

    return make


def _layer(path: str) -> dict[str, object]:
    return {"path": path, "kind": "conv2d", "n_params": 2304, "n_macs": 2_359_296}


def _scored(record: TrialRecord) -> bool:
    return math.isfinite(record.metrics.get("accuracy", math.nan))
