"""The study of a resumed run: refused where it lacks trials that the records have, rebuilt from them when asked."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace
from itertools import count

from autocompress.errors import AutocompressError, InputError
from autocompress.execution.open_run import Predict, study_of
from autocompress.report.files import n_records_shown
from autocompress.results.records import TrialRecord, numbers_in, read_records
from autocompress.results.run_folder import RunFolder, RunInfo
from autocompress.sampling.study import SearchStudy
from autocompress.space.search_space import SearchSpace


def reopened_study(
    folder: RunFolder, space: SearchSpace, info: RunInfo, predict: Predict | None = None, rebuild: bool = False
) -> SearchStudy:
    """The study of a run that has trials; nothing is written where it is refused.

    Args:
        folder: of the run; the caller holds its lock.
        space: of the search.
        info: of the run.
        predict: see `SearchStudy`.
        rebuild: make the study again from itself and `trials.jsonl`, where it lacks trials.

    Raises:
        InputError: the study is missing, damaged, or lacks trials that the run is known to have; names them.
    """
    try:
        return _whole_study(folder, space, info, predict)
    except _LostError as lost:
        if rebuild:
            return _rebuilt(folder, space, info, predict, lost.found)
        raise InputError(
            f"{lost}; put the file back, or make the study again from trials.jsonl: "
            f"`autocompress resume {shlex.quote(str(folder.path))} --rebuild-study`"
        ) from lost


class _LostError(Exception):
    """The study lacks something.

    Args:
        reason: what.
        found: the records that it still has.
    """

    def __init__(self, reason: str, found: Iterable[TrialRecord] = ()) -> None:
        super().__init__(reason)
        self.found = tuple(found)


def _whole_study(folder: RunFolder, space: SearchSpace, info: RunInfo, predict: Predict | None) -> SearchStudy:
    if not folder.study.is_file():
        raise _LostError(f"a run is resumed from its study, but {folder.study} is missing")
    if not folder.study.stat().st_size:
        raise _LostError(f"a run is resumed from its study, but {folder.study} is empty")
    try:
        study = study_of(folder, space, info, predict)
        records = study.records()
    except AutocompressError as error:
        raise _LostError(f"{folder.study} is damaged: {error}") from error
    except Exception as error:  # whatever Optuna raises on entries that make no sense
        raise _LostError(f"{folder.study} is damaged: {type(error).__name__}: {error}") from error
    lost = sorted(numbers_in(folder.records) - {record.number for record in records})
    if lost:
        named = ", ".join(map(str, lost[:8])) + (", ..." if len(lost) > 8 else "")
        raise _LostError(f"{folder.study} lacks trials that {folder.records.name} has: {named}", records)
    n_shown = n_records_shown(folder)
    if n_shown > len(records):
        reason = f"{folder.study} has {len(records)} trials, but {folder.table_json.name} was made of {n_shown}"
        raise _LostError(reason, records)
    return study


def _rebuilt(
    folder: RunFolder, space: SearchSpace, info: RunInfo, predict: Predict | None, found: tuple[TrialRecord, ...]
) -> SearchStudy:
    """A new study of all records that are known; the old file is kept under another name."""
    if not folder.records.is_file():
        raise InputError(
            f"the study is made again from trials.jsonl, but {folder.records} is missing too; put one of both back"
        )
    records = {record.number: record for record in (*found, *read_records(folder.records))}
    if folder.study.exists():
        places = (folder.study.with_name(f"{folder.study.name}.damaged-{i}") for i in count(1))
        folder.study.rename(next(place for place in places if not place.exists()))
    study = study_of(folder, space, info, predict)
    for number in sorted(records):
        study.add_known(records[number])
    return study


def with_known_files(records: list[TrialRecord], folder: RunFolder) -> list[TrialRecord]:
    """The study's records, with what an earlier start of the run measured from their files."""
    try:
        files = {record.number: record.file for record in read_records(folder.records)}
    except InputError:
        return records  # damaged or missing: they are measured again
    return [replace(record, file=files.get(record.number)) for record in records]
