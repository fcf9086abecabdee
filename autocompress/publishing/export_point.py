"""One point as a folder to walk away with: the runtime's file, and everything that is measured from it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from autocompress.compression import Recipe, sparse_saving_bytes
from autocompress.evaluation import evaluate_predict
from autocompress.latency.layer_times import measure_layer_times
from autocompress.latency.target_device import LocalDevice, TargetDevice
from autocompress.metrics import main_output
from autocompress.publishing.artifact import RECIPE, save_student, write_manifest
from autocompress.publishing.runner import RUNNABLE, choose_examples, measure_memory, write_examples, write_runner
from autocompress.results.records import FileNumbers, Latency, TrialRecord
from autocompress.results.run_folder import LAYER_TIMES
from autocompress.runtimes import Session, check_parity, export_for, runtime_named, session_predict
from autocompress.task import Inputs, Task
from autocompress.task_access import calibration_of, examples_of

SPLITS = ("selection", "test")
_FINAL_ROUNDS = 25
_BYTES_PER_MIB = 2**20


@dataclass(frozen=True)
class ExportTarget:
    """What a point is written for, judged by and timed against.

    Attributes:
        task: judges the file on every split.
        runtime: name of the runtime.
        n_threads: threads that it may use.
        reference: the uncompressed model's file for it.
        reference_ms: latency of that file, milliseconds.
        target_device: the machine that the model is for, when it is another one than this.
    """

    task: Task
    runtime: str
    n_threads: int
    reference: Path
    reference_ms: float
    target_device: TargetDevice | None = None

    @property
    def device(self) -> TargetDevice:
        """Where files are loaded and timed."""
        return self.target_device or LocalDevice(self.runtime, self.n_threads)


def export_point(
    folder: Path,
    record: TrialRecord,
    student: nn.Module,
    recipe: Recipe,
    target: ExportTarget,
    facts: Mapping[str, Any],
) -> TrialRecord:
    """Exports the student, measures its file, and writes a folder that needs nothing else to be run.

    Args:
        folder: new; made here.
        record: of the trial.
        student: the compressed model, with its weights.
        recipe: of the student.
        target: what it is written for.
        facts: for the manifest.

    Returns:
        The record with the numbers of the file.

    Raises:
        ExportError: the student cannot be written, or the file gives something else; names the layer where they part.
    """
    task = target.task
    save_student(folder, student, recipe)
    (folder / RECIPE).unlink()  # the manifest holds it
    inputs = examples_of(task)
    file = export_for(task, runtime_named(target.runtime), student, inputs, folder)
    samples = next(calibration_of(task))
    parity = check_parity(student, target.device.load, file, samples)
    session = target.device.load(file)
    predict = session_predict(session, lambda: student, inputs)
    examples = choose_examples(samples)
    facts = {**facts, "examples": write_examples(folder, examples, main_output(predict(examples)))}
    judged = {split: evaluate_predict(predict, task, split) for split in splits_of(task)}
    size = file.stat().st_size
    saved = sparse_saving_bytes(student, recipe.sparse_layers)
    numbers = FileNumbers(
        metrics={split: metrics for split, (metrics, _) in judged.items()},
        n_samples={split: n_samples for split, (_, n_samples) in judged.items()},
        latency=_time(session, target, inputs),
        size_mib=size / _BYTES_PER_MIB,
        sparse_size_mib=(size - saved) / _BYTES_PER_MIB if recipe.sparse_layers else None,
        zip_size_mib=len(zlib.compress(file.read_bytes())) / _BYTES_PER_MIB,
        max_abs_diff=parity.max_abs_diff,
        agreement=parity.agreement,
    )
    measured = record.with_file(numbers)
    if target.runtime in RUNNABLE:
        write_runner(folder)
    write_manifest(folder, measured, recipe, file, facts)
    if not target.device.is_here:
        return measured  # layer times and memory would be this machine's
    layer_times = measure_layer_times(file, inputs, target.runtime, target.n_threads)
    if layer_times is not None:
        layer_times.write(folder / LAYER_TIMES)
    if target.runtime in RUNNABLE:
        measured = record.with_file(replace(numbers, memory_mib=measure_memory(folder)))
    write_manifest(folder, measured, recipe, file, facts)
    return measured


def _time(session: Session, target: ExportTarget, inputs: Inputs) -> Latency:
    reference = target.device.load(target.reference)
    timing = target.device.time(session, reference, inputs, _FINAL_ROUNDS, idle_ms=target.reference_ms)
    return Latency(timing.ratio, timing.spread, timing.ratio * target.reference_ms, timing.n_rounds)


def splits_of(task: Task) -> tuple[str, ...]:
    """The splits that a point's file is judged on, selection first."""
    return (*SPLITS, *getattr(task, "further_splits", ()))
