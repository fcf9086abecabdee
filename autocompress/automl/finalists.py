"""Turns the front into files: exports each point, times it with the workers idle, judges the file on every split."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from autocompress.artifact import load_student, read_manifest, save_student, write_manifest
from autocompress.automl.bench import Job
from autocompress.compression import sparse_saving_bytes
from autocompress.errors import AutocompressError
from autocompress.latency import time_sessions
from autocompress.pareto import ParetoFront, front_of
from autocompress.records import FileNumbers, Latency, TrialRecord
from autocompress.run_folder import RunFolder
from autocompress.runtimes import Session, runtime_named
from autocompress.task import Inputs, as_inputs, call_model, check_metrics

SPLITS = ("selection", "test")
_FINAL_ROUNDS = 25
_BYTES_PER_MIB = 2**20


def finalize(
    records: Sequence[TrialRecord],
    job: Job,
    folder: RunFolder,
    facts: Mapping[str, Any],
    on_point: Callable[[str], None] = lambda name: None,
) -> tuple[list[TrialRecord], ParetoFront]:
    """Gives every front point, and the uncompressed model, numbers measured from its file.

    A point that turns out slower than the budget leaves the front and its successor is measured, until all points of
    the front have files.

    Args:
        records: of all trials.
        job: of the search.
        folder: of the run; points go to `front/`, and points no longer on the front are removed.
        facts: for the manifests.
        on_point: told the name of each point before it is measured.

    Returns:
        All records, those with files updated, and the front.
    """
    by_number = {record.number: _with_known_file(record, folder) for record in records}
    while True:
        front = front_of(list(by_number.values()), job.metric, job.budget, job.reference_ms, job.min_score)
        wanted = [*front.points, *([front.baseline] if front.baseline is not None else [])]
        missing = [record for record in wanted if record.file is None]
        if not missing:
            break
        for record in missing:
            on_point(record.name)
            by_number[record.number] = _measure(record, job, folder, facts)
    kept = {record.name for record in wanted}
    for path in folder.front.iterdir() if folder.front.is_dir() else ():
        if path.name not in kept:
            shutil.rmtree(path)
    return list(by_number.values()), front


def _with_known_file(record: TrialRecord, folder: RunFolder) -> TrialRecord:
    """Takes numbers that an earlier start of this run measured from a file that is still there."""
    point = folder.point(record.name)
    if record.file is not None or not (point / "manifest.json").is_file():
        return record
    return record.with_file(FileNumbers.from_dict(read_manifest(point)["numbers"]))


def _measure(record: TrialRecord, job: Job, folder: RunFolder, facts: Mapping[str, Any]) -> TrialRecord:
    try:
        return _measured(record, job, folder, facts)
    except AutocompressError as error:
        # the trial's weights or its file are unusable: it leaves the front with the reason, the search goes on
        return replace(record, state="failed", error=f"while its file was measured: {error}")


def _measured(record: TrialRecord, job: Job, folder: RunFolder, facts: Mapping[str, Any]) -> TrialRecord:
    runtime, n_threads = runtime_named(job.settings.runtime), job.settings.n_threads
    inputs = as_inputs(job.task.example_inputs())
    student, recipe = load_student(folder.trial(record.name), job.model, job.graph)
    partial = folder.front / f".{record.name}"
    shutil.rmtree(partial, ignore_errors=True)
    save_student(partial, student, recipe)
    (partial / "recipe.json").unlink()  # the manifest holds it
    file = runtime.export(student, inputs, partial)
    session = runtime.load(file, n_threads)
    max_abs_diff, agreement = _parity(student, session, as_inputs(next(iter(job.task.calibration_batches()))))
    metrics, n_samples = _judge(session, job)
    size = file.stat().st_size
    saved = sparse_saving_bytes(student, recipe.sparsity)
    numbers = FileNumbers(
        metrics=metrics,
        n_samples=n_samples,
        latency=_time(session, folder, job, inputs),
        size_mib=size / _BYTES_PER_MIB,
        sparse_size_mib=(size - saved) / _BYTES_PER_MIB if recipe.sparsity else None,
        max_abs_diff=max_abs_diff,
        agreement=agreement,
    )
    measured = record.with_file(numbers)
    write_manifest(partial, measured, recipe, file, facts)
    shutil.rmtree(folder.point(record.name), ignore_errors=True)
    partial.rename(folder.point(record.name))
    return measured


def _time(session: Session, folder: RunFolder, job: Job, inputs: Inputs) -> Latency:
    reference = runtime_named(job.settings.runtime).load(folder.reference, job.settings.n_threads)
    timing = time_sessions(session, reference, inputs, _FINAL_ROUNDS, quiet_ms=job.reference_ms)
    return Latency(timing.ratio, timing.spread, timing.ratio * job.reference_ms, timing.n_rounds)


def _judge(session: Session, job: Job) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Metrics of the file on every split, and how many samples it was asked for."""
    metrics: dict[str, dict[str, float]] = {}
    counted: Counter[str] = Counter()
    for split in (*SPLITS, *getattr(job.task, "further_splits", ())):

        def predict(inputs: Inputs, split: str = split) -> Tensor:
            outputs = session.predict(inputs)
            counted[split] += outputs.shape[0]
            return outputs

        metrics[split] = check_metrics(job.task.evaluate(predict, split), split)
    return metrics, dict(counted)


def _parity(student: torch.nn.Module, session: Session, inputs: Inputs) -> tuple[float, float]:
    """Largest difference, and share of samples with the same largest output, between the student and its file."""
    with torch.no_grad():
        ours: Tensor = call_model(student, inputs)
    theirs = session.predict(inputs)
    difference = (ours - theirs).abs().max().item()
    agreement = (ours.flatten(1).argmax(1) == theirs.flatten(1).argmax(1)).double().mean().item()
    return difference, agreement
