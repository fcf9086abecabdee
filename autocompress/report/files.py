"""Writes what a reader opens: `front.csv`, `front.json` and `report.html` in the run folder."""

from __future__ import annotations

import json
from pathlib import Path

from autocompress.files import write_atomically
from autocompress.report.page import page
from autocompress.results.columns import describe
from autocompress.results.run_folder import Run

SCHEMA_VERSION = 1


def write_front_table(run: Run) -> Path:
    """Writes the front as `front.csv` and `front.json`, one row per point, fastest first; returns the first.

    The JSON also holds each column's unit and meaning; a figure that is not known is null.
    """
    frame = run.front.to_frame()
    table = {
        "schema": SCHEMA_VERSION,
        "task": run.info.task,
        "reason": run.front.reason,
        "columns": describe([str(name) for name in frame.columns], run.info.objectives.metric),
        "rows": json.loads(frame.to_json(orient="records", double_precision=15)),
    }
    write_atomically(run.folder.table_json, json.dumps(table, indent=1, allow_nan=False))
    write_atomically(run.folder.table, frame.to_csv(index=False))
    return run.folder.table


def write_report_page(run: Run) -> Path:
    """Writes the report as `report.html`: one page that needs neither a network nor a server."""
    write_atomically(run.folder.report, page(run))
    return run.folder.report
