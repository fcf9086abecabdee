"""Writes what a reader opens: `front.csv` and `report.html` in the run folder."""

from __future__ import annotations

from pathlib import Path

from autocompress.report.page import page
from autocompress.run_folder import Run


def write_front_table(run: Run) -> Path:
    """Writes the front as `front.csv`, one row per point, fastest first; the columns are in `docs/results.md`."""
    return _write(run.folder.table, run.front.to_frame().to_csv(index=False))


def write_report(run: Run) -> Path:
    """Writes the report as `report.html`: one page that needs neither a network nor a server."""
    return _write(run.folder.report, page(run))


def _write(path: Path, text: str) -> Path:
    """Writes beside the path and renames, so that a reader never opens half a file."""
    draft = path.with_suffix(path.suffix + ".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    return path
