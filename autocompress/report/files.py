"""Writes what a reader opens: `front.csv`, `front.json` and `report.html` in the run folder."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from autocompress.errors import InputError
from autocompress.files import read_json, write_atomically
from autocompress.report.page import page
from autocompress.results.columns import describe
from autocompress.results.run_folder import Run, RunFolder

SCHEMA_VERSION = 1


def write_front_table(run: Run) -> Path:
    """Writes the front as `front.csv` and `front.json`, one row per point, fastest first; returns the first.

    The JSON also holds each column's unit and meaning; a figure that is not known is null.

    Raises:
        InputError: see `require_not_fewer`.
    """
    require_not_fewer(run)
    frame = run.front.to_frame()
    table = {
        "schema": SCHEMA_VERSION,
        "task": run.info.task,
        "n_trials": len(run.records),
        "reason": run.front.reason,
        "columns": describe([str(name) for name in frame.columns], run.info.objectives.metric),
        "rows": json.loads(frame.to_json(orient="records", double_precision=15)),
    }
    write_atomically(run.folder.table_json, json.dumps(table, indent=1, allow_nan=False))
    write_atomically(run.folder.table, frame.to_csv(index=False))
    return run.folder.table


def write_report_page(run: Run) -> Path:
    """Writes the report as `report.html`: one page that needs neither a network nor a server.

    Raises:
        InputError: see `require_not_fewer`.
    """
    require_not_fewer(run)
    write_atomically(run.folder.report, page(run))
    return run.folder.report


def n_records_shown(folder: RunFolder) -> int:
    """How many trials the front's table was made of; 0 where there is none, or an earlier version wrote it."""
    try:
        n_trials = read_json(folder.table_json).get("n_trials", 0)
    except InputError:
        return 0
    return n_trials if type(n_trials) is int else 0


def require_not_fewer(run: Run) -> None:
    """Refuses to write results of fewer trials over those of more.

    Raises:
        InputError: `trials.jsonl` was shortened.
    """
    n_shown = n_records_shown(run.folder)
    if len(run.records) < n_shown:
        raise InputError(
            f"{run.folder.records} has {len(run.records)} trials, but {run.folder.table_json.name} was made of "
            f"{n_shown}; `autocompress resume {shlex.quote(str(run.folder.path))}` writes it anew from the study; "
            f"or delete {run.folder.table_json.name} to show the fewer"
        )
