"""Points of the tiny task, written and measured as a search does it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from autocompress.compression import rebuild, resolve
from autocompress.graph import inspect_model
from autocompress.publishing.export_point import ExportTarget, export_point
from autocompress.results.records import Latency, TrialRecord
from autocompress.runtimes import runtime_named, saturates
from autocompress.space.candidate import Candidate
from autocompress.task import Task, as_inputs
from tests.shared.tasks import tiny_task

Point: TypeAlias = tuple[Path, TrialRecord]
MIXED = Candidate(prune_ratio={"conv1": 0.5}, rank_ratio={"conv2": 0.5}, weight_bits={"conv1": 8, "fc": 8})


def tiny_point(
    folder: Path, candidate: Candidate = MIXED, runtime: str = "onnxruntime", task: Task | None = None
) -> TrialRecord:
    """Writes `folder` for that candidate, untrained; returns its record."""
    task = task or tiny_task()
    model, inputs = task.build_model().eval(), as_inputs(task.example_inputs())
    graph = inspect_model(model, inputs)
    recipe = replace(resolve(model, graph, candidate), half_range_weights=saturates(runtime_named(runtime)))
    student = rebuild(model, graph, recipe, [as_inputs(batch) for batch in task.calibration_batches()]).eval()
    reference = folder.parent / "reference"
    reference.mkdir(parents=True)
    target = ExportTarget(task, runtime, 1, runtime_named(runtime).export(model, inputs, reference), 0.05)
    record = TrialRecord(7, "complete", "sampler", candidate, {"accuracy": 0.5}, Latency(0.5, 0.01, 0.025, 9))
    facts = {
        "task": "tiny",
        "metric": "accuracy",
        "license": "unknown",
        "runtime": runtime,
        "n_threads": 1,
        "uncompressed": {"digest": "0" * 12, "n_params": graph.n_params, "latency_ms": 0.05},
        "machine": {"cpu": "a CPU"},
        "versions": {},
    }
    return export_point(folder, record, student, recipe, target, facts)
