"""Exports the front: writes each point's file, times it with the workers idle, and judges it on every split."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autocompress.errors import AutocompressError, StorageError
from autocompress.latency.target_device import TargetDevice
from autocompress.locked_temp_dir import LockedTempDir
from autocompress.publishing.artifact import load_student, read_manifest
from autocompress.publishing.export_point import ExportTarget, export_point
from autocompress.publishing.model_card import UNKNOWN_LICENSE, write_card
from autocompress.publishing.point_folder import (
    is_point_of,
    remove_point,
    replace_point,
    require_as_measured,
    require_own_place,
)
from autocompress.report.files import write_front_table, write_report_page
from autocompress.results.pareto import ParetoFront, front_of
from autocompress.results.records import FileNumbers, TrialRecord, write_records
from autocompress.results.run_folder import RunFolder, RunInfo
from autocompress.search_context import SearchContext
from autocompress.task import Task

_POINT = re.compile(r"\.?trial_(\d{4,})")


def export_front(
    records: Sequence[TrialRecord],
    context: SearchContext,
    folder: RunFolder,
    info: RunInfo,
    target_device: TargetDevice | None = None,
    on_point: Callable[[int, int], None] = lambda n_done, n_all: None,
) -> tuple[list[TrialRecord], ParetoFront]:
    """Measures the front's files, and writes the records, the tables and the report; see `measure_front`."""
    facts = facts_of(info, context.task, context.graph.n_params)
    measured, front = measure_front(records, context, folder, facts, on_point, target_device)
    write_records(folder.records, measured)
    run = folder.read()
    write_front_table(run)
    write_report_page(run)
    return measured, front


def facts_of(info: RunInfo, task: Task, n_params: int) -> dict[str, Any]:
    """What every manifest of a run says."""
    return {
        "task": info.task,
        "metric": info.objectives.metric,
        "license": str(getattr(task, "license", UNKNOWN_LICENSE)),
        "runtime": info.settings.runtime,
        "n_threads": info.settings.n_threads,
        "uncompressed": {"digest": info.model_digest, "n_params": n_params, "latency_ms": info.objectives.reference_ms},
        "machine": dict(info.machine),
        "versions": dict(info.versions),
    }


def measure_front(
    records: Sequence[TrialRecord],
    context: SearchContext,
    folder: RunFolder,
    facts: Mapping[str, Any],
    on_point: Callable[[int, int], None] = lambda n_done, n_all: None,
    target_device: TargetDevice | None = None,
) -> tuple[list[TrialRecord], ParetoFront]:
    """Gives every front point, and the uncompressed model, numbers measured from its file.

    A point whose file is slower than the budget, or beyond that of size or memory, leaves the front and its successor
    is measured, until all points of the front have files.

    Args:
        records: of all trials.
        context: of the search.
        folder: of the run; points go to `front/`, and points no longer on the front are removed.
        facts: for the manifests.
        on_point: called with how many of how many points have files, after each.
        target_device: the machine that the model is for, when it is another one than this.

    Returns:
        All records, those with files updated, and the front.
    """
    model_digest = facts["uncompressed"]["digest"]
    by_number = {record.number: _with_known_file(record, folder, model_digest) for record in records}
    while True:
        front = front_of(list(by_number.values()), context.objectives)
        wanted = [*front.points, *([front.baseline] if front.baseline is not None else [])]
        missing = [record for record in wanted if record.file is None]
        if not missing:
            break
        for n_measured, record in enumerate(missing, start=1 + len(wanted) - len(missing)):
            by_number[record.number] = _measure(record, context, folder, facts, target_device)
            on_point(n_measured, len(wanted))
    for record in wanted:
        write_card(folder.point(record.name), None if front.baseline is None else front.baseline.file)
    _remove_others(folder, {record.name for record in wanted}, facts["uncompressed"]["digest"])
    return list(by_number.values()), front


def check_points(folder: RunFolder, model_digest: str) -> None:
    """Checks what an earlier start of the run measured: that the files are still those, and the places free.

    Raises:
        InputError: a file differs from its digest, or something that the run did not write is in a point's place.
    """
    for path in folder.front.iterdir() if folder.front.is_dir() else ():
        match = _POINT.fullmatch(path.name)
        if match is None:
            continue
        require_own_place(path)
        if is_point_of(path, int(match[1]), model_digest):
            require_as_measured(path)


def _remove_others(folder: RunFolder, kept: Collection[str], model_digest: str) -> None:
    """Removes points that left the front; what this run did not write there stays."""
    for path in folder.front.iterdir() if folder.front.is_dir() else ():
        match = _POINT.fullmatch(path.name)
        if match and path.name not in kept and is_point_of(path, int(match[1]), model_digest):
            remove_point(path)


def _with_known_file(record: TrialRecord, folder: RunFolder, model_digest: str) -> TrialRecord:
    """Takes numbers that an earlier start of this run measured from a file that is still there."""
    point = folder.point(record.name)
    if record.file is not None or not is_point_of(point, record.number, model_digest):
        return record
    manifest = read_manifest(point)
    if "examples" not in manifest or manifest["numbers"] is None:  # of an earlier version
        return record
    return record.with_file(FileNumbers.from_dict(manifest["numbers"]))


def _measure(
    record: TrialRecord,
    context: SearchContext,
    folder: RunFolder,
    facts: Mapping[str, Any],
    target_device: TargetDevice | None,
) -> TrialRecord:
    require_own_place(folder.point(record.name))
    try:
        return _measured(record, context, folder, facts, target_device)
    except AutocompressError as error:
        if not folder.info.is_file():
            raise StorageError(f"the run's folder {folder.path} was removed; the search ends here") from error
        # the trial's weights or its file are unusable: it leaves the front with the reason, the search continues
        return replace(record, state="failed", error=f"while its file was measured: {error}")


def _measured(
    record: TrialRecord,
    context: SearchContext,
    folder: RunFolder,
    facts: Mapping[str, Any],
    target_device: TargetDevice | None,
) -> TrialRecord:
    student, recipe = load_student(folder.trial(record.name), context.model, context.graph)
    settings, reference_ms = context.settings, context.objectives.reference_ms
    target = ExportTarget(
        context.task, settings.runtime, settings.n_threads, folder.reference, reference_ms, target_device
    )
    with LockedTempDir(folder.made(folder.front)) as scratch:
        draft = scratch.path / record.name
        measured = export_point(draft, record, student, recipe, target, facts)
        replace_point(draft, folder.point(record.name))
    return measured
