"""Trains candidates from the uncompressed model's weights and from a neighbour's, with several optimizers and rates.

    python experiments/011_training_passed_on/run.py PART [--students FOLDER] [--first N]

PART is a key of config.yaml. Rows are appended to results.csv; runs that are there already are passed over. Students
are kept in FOLDER (default: runs/011), where later runs start from them.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from autocompress.compression import CalibrationStats, resolve
from autocompress.compression.pipeline import UNCOMPRESSED, Parent, Rebuilding, student_from
from autocompress.config import DistillSettings
from autocompress.distillation.fine_tune import FineTune, Teacher
from autocompress.graph import ModelGraph, inspect_model
from autocompress.publishing.artifact import load_student, save_student
from autocompress.space.candidate import Candidate
from autocompress.task import Inputs, Task, as_inputs, call_model, load_task

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"
FIELDS = [
    "part", "candidate", "start", "optimizer", "learning_rate", "seed", "n_steps", "steps", "accuracy", "loss",
    "seconds", "commit", "versions", "machine",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part")
    parser.add_argument("--students", type=Path, default=Path("runs/011"))
    parser.add_argument("--first", type=int, default=None, help="only so many runs of the part")
    asked = parser.parse_args()
    part = yaml.safe_load((HERE / "config.yaml").read_text())[asked.part]
    runner = _Runner(load_task(part["task"]), asked.students / asked.part)
    for run in part["runs"][: asked.first]:
        rungs = tuple(run.get("rungs", part["rungs"]))
        spec = {"start": UNCOMPRESSED, "seed": 0, **run, "part": asked.part, "n_steps": rungs[-1]}
        spec.pop("rungs", None)
        if not _is_done(spec):
            runner.run(spec, runner.candidate(part["candidates"][run["candidate"]]), rungs)


class _Runner:
    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.folder = task, folder
        self.model = task.build_model()
        self.graph: ModelGraph = inspect_model(self.model, as_inputs(task.example_inputs()))
        self.teacher = Teacher(task.build_model())
        self.calibration = [as_inputs(inputs) for inputs in task.calibration_batches()]
        self.calibration_stats = CalibrationStats(self.model, self.graph, self.calibration, task)
        self.how = Rebuilding(self.graph, self.calibration)

    def candidate(self, asked: dict[str, Any]) -> Candidate:
        names = [branch.name for branch in self.graph.branches]
        every = asked.get("drop")
        dropped = names[1::every] if every else []
        dropped += [name for name in names[2::6] if name not in dropped][: asked.get("more", 0)]
        return Candidate(
            drop=frozenset(dropped),
            prune_ratio={
                group.name: asked.get("prune", 0.0)
                for group in self.graph.groups
                if not group.name.startswith(asked.get("whole", "-"))
            },
            weight_bits={layer.path: asked.get("bits", 32) for layer in self.graph.layers},
        )

    def run(self, spec: dict[str, Any], candidate: Candidate, rungs: tuple[int, ...]) -> None:
        start, _, judged_by = spec["start"].partition(":")
        parent = self._parent(start)
        calibration_stats = (
            CalibrationStats(parent.model, self.graph) if judged_by == "importance" else self.calibration_stats
        )
        recipe = resolve(self.model, self.graph, candidate, "l2", calibration_stats)
        student = student_from(parent, recipe, self.how)
        settings = DistillSettings(rungs=rungs, optimizer=spec["optimizer"], learning_rate=spec["learning_rate"])
        fine_tune = FineTune(student, self.teacher, self.task, settings, spec["seed"])
        seconds = 0.0
        for rung in rungs:
            begin = time.perf_counter()
            fine_tune.advance(rung)
            seconds += time.perf_counter() - begin
            _write({**spec, "steps": rung, "seconds": round(seconds, 1), **self._figures(student)})
        if spec["start"] == UNCOMPRESSED:
            save_student(self.folder / spec["candidate"], student, recipe)

    def _parent(self, name: str) -> Parent:
        whole = Parent(UNCOMPRESSED, self.model)
        if name == UNCOMPRESSED:
            return whole
        student, recipe = load_student(self.folder / name, self.model, self.graph)
        return Parent.trained(name, student, recipe, whole, self.graph)

    def _figures(self, student: nn.Module) -> dict[str, float]:
        def predict(inputs: Inputs) -> Tensor:
            with torch.no_grad():
                return call_model(student, inputs)  # type: ignore[no-any-return]

        figures = self.task.evaluate(predict, "selection")
        return {"accuracy": round(figures["accuracy"], 4), "loss": round(figures["loss"], 4)}


def _is_done(spec: dict[str, Any]) -> bool:
    if not RESULTS.is_file():
        return False
    with RESULTS.open() as file:
        rows = list(csv.DictReader(file))
    last = {**spec, "steps": spec["n_steps"]}
    return any(all(str(value) == row[name] for name, value in last.items()) for row in rows)


def _write(row: dict[str, Any]) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    versions = f"python {platform.python_version()}, torch {importlib.metadata.version('torch')}"
    machine = f"{platform.machine()}, {torch.get_num_threads()} thread"
    row |= {"commit": commit.stdout.strip(), "versions": versions, "machine": machine}
    new = not RESULTS.is_file()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print({name: row[name] for name in FIELDS[:11]}, flush=True)


if __name__ == "__main__":
    main()
