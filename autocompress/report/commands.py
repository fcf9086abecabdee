"""The commands that load, run, copy, refine or rebuild a point; paths are quoted for Python or for a shell."""

from __future__ import annotations

import shlex
from pathlib import Path

from autocompress.results.records import TrialRecord
from autocompress.results.run_folder import Run


def resume_command(folder: Path) -> str:
    """The command that resumes a run, in backticks."""
    return f"`autocompress resume {shlex.quote(str(folder))}`"


def commands(record: TrialRecord, run: Run) -> dict[str, str]:
    """Name of a command -> its text; what cannot be done with this run is left out."""
    folder, point = str(run.folder.path), str(run.folder.point(record.name))
    quoted = shlex.quote(folder)
    lines = ["import autocompress", ""]
    if run.info.task_spec is not None:
        lines.append(f"task = autocompress.load_task({run.info.task_spec!r})")
    lines.append(f"model = autocompress.load({point!r}, task)")
    texts = {
        "folder": point,
        "load": "\n".join(lines),
        "pick": f"autocompress pick {quoted} --trial {record.number} -o model/",
        "run": f"python {shlex.quote(str(run.folder.point(record.name) / 'run.py'))}",
        "reproduce": run.info.command,
    }
    if run.info.task_spec is not None:
        texts["refine"] = f"autocompress refine {quoted} {record.number} --epochs 10"
        texts["export"] = f"autocompress export {quoted} {record.number} --runtime openvino -o exported/"
    return texts
