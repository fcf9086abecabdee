"""Exports one trial for another runtime into a self-contained folder, measured like a point of the front."""

from __future__ import annotations

import shutil
from pathlib import Path

from autocompress.errors import InputError
from autocompress.execution.open_run import context_of, task_of
from autocompress.execution.refine import trial_of
from autocompress.latency import measure_latency
from autocompress.locked_temp_dir import LockedTempDir
from autocompress.publishing.artifact import load_student
from autocompress.publishing.export_front import facts_of
from autocompress.publishing.export_point import ExportTarget, export_point
from autocompress.publishing.model_card import write_card
from autocompress.results.records import TrialRecord, read_records
from autocompress.results.run_folder import RunFolder, check_output
from autocompress.runtimes import export_for, runtime_named
from autocompress.task import Task
from autocompress.task_access import examples_of


def export_trial(
    folder: RunFolder,
    trial: int,
    runtime: str,
    output: Path,
    n_threads: int | None = None,
    task: Task | None = None,
) -> TrialRecord:
    """Exports a trial for a runtime and measures the file as a front point's is.

    It is timed against the uncompressed model's file for the same runtime.

    Args:
        folder: of the run; it is read only.
        trial: number of a trial that did not fail.
        runtime: name of the runtime, see `RUNTIMES`.
        output: new folder.
        n_threads: threads of the runtime; None takes the search's.
        task: needed when the search was given a task object.

    Returns:
        The record with the numbers of the new file.

    Raises:
        InputError: no such trial, or the output exists.
        ExportError: the runtime cannot take the model.
        MissingExtraError: the runtime's library is not installed.
    """
    check_output(output)
    if n_threads is not None and n_threads < 1:
        raise InputError(f"`n_threads >= 1` must hold, but got {n_threads}")
    info = folder.read_info()
    target = runtime_named(runtime)
    record = trial_of(read_records(folder.records), trial)
    task = task_of(folder, info, task)
    context = context_of(folder, info, task)
    student, recipe = load_student(folder.trial(record.name), context.model, context.graph)
    threads = n_threads or info.settings.n_threads
    inputs = examples_of(task)
    with LockedTempDir() as scratch:
        reference = export_for(task, target, context.model, inputs, scratch.path)
        reference_ms = measure_latency(reference, inputs, runtime=runtime, n_threads=threads).value
        facts = facts_of(info, task, context.graph.n_params)
        facts |= {"runtime": runtime, "n_threads": threads}
        facts["uncompressed"] = {**facts["uncompressed"], "latency_ms": reference_ms}
        where = ExportTarget(task, runtime, threads, reference, reference_ms)
        try:
            measured = export_point(output, record, student, recipe, where, facts)
        except BaseException:
            shutil.rmtree(output, ignore_errors=True)  # half a folder would only refuse its name to the next try
            raise
    write_card(output, None)
    return measured
