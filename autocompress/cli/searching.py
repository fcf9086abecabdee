"""Commands that run trials or watch them: demo, search, resume, status, refine, export."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from autocompress.cli.commands import add_command, add_settings, add_task_options, given_settings, take_task
from autocompress.cli.reporting import numbers_line, show
from autocompress.config import SearchSettings, read_settings
from autocompress.settings_schema import declared_in

DEMO_TRIALS = 24
_SECONDS = 2.0  # between two lines of `status --watch`


def add_commands(commands: Any) -> None:
    """Adds demo, search, resume, status, refine and export."""
    demo = add_command(commands, "demo", _demo, "search a small CNN on scikit-learn's bundled digits, end to end")
    demo.add_argument("--run-dir", type=Path, help="new folder for the run (default: runs/demo-DATE)")
    demo.add_argument("--trials", type=int, default=DEMO_TRIALS, help="trials in all (default: %(default)s)")
    demo.add_argument("--workers", type=int, default=2, help="trials at the same time (default: %(default)s)")

    search = add_command(commands, "search", _search, "search the Pareto front of a task's model")
    search.add_argument("task", metavar="TASK")
    search.add_argument("--run-dir", type=Path, help="new folder for the run (default: runs/TASK)")
    search.add_argument(
        "--config", type=Path, help="YAML file of settings by their names in docs/settings.md; flags win"
    )
    add_task_options(search)
    add_settings(search, declared_in(SearchSettings))

    resume = add_command(commands, "resume", _resume, "continue a search that was stopped or killed")
    resume.add_argument("run_dir", metavar="RUN", type=Path)
    add_settings(resume, [item for item in declared_in(SearchSettings) if item.setting.changeable])

    status = add_command(commands, "status", _status, "show the state of a run, from another terminal")
    status.add_argument("run_dir", metavar="RUN", type=Path)
    status.add_argument("--watch", action="store_true", help="repeat until the run ends")

    refine = add_command(
        commands, "refine", _refine, "train one point longer: a new trial, and a new point if it is good"
    )
    refine.add_argument("run_dir", metavar="RUN", type=Path)
    refine.add_argument("trial", metavar="N", type=int, help="number of a trial that did not fail")
    refine.add_argument("--epochs", type=int, required=True, help="passes over the training data")
    refine.add_argument("--learning-rate", type=float, help="peak of the schedule (default: the search's)")

    export = add_command(commands, "export", _export, "write one point for another runtime, and measure it there")
    export.add_argument("run_dir", metavar="RUN", type=Path)
    export.add_argument("trial", metavar="N", type=int, help="number of a trial that did not fail")
    export.add_argument("--runtime", required=True, help="onnxruntime, openvino, torch, ... or package.module:Class")
    export.add_argument("--threads", type=int, help="threads of the runtime (default: the search's)")
    export.add_argument("-o", "--output", type=Path, required=True, help="new folder for the model")


def _demo(run_dir: Path | None, trials: int, workers: int) -> None:
    _run_search(
        "digits",
        run_dir or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}",
        {
            "space": "digits",
            "latency_budget": "0.5x",
            "n_trials": trials,
            "n_workers": workers,
            "distill": {"rungs": [0, 20, 60], "learning_rate": 0.05},
        },
    )


def _search(task: str, run_dir: Path | None, config: Path | None, **flags: Any) -> None:
    named = take_task(task, flags)
    settings = given_settings(flags, None if config is None else read_settings(config))
    name = "".join(letter if letter.isalnum() else "-" for letter in Path(task.split("?")[0]).name.replace(".py", ""))
    _run_search(named, run_dir or Path("runs") / name, settings)


def _run_search(task: str, run_dir: Path, settings: dict[str, Any]) -> None:
    from autocompress.api import run_new

    run_new(task, SearchSettings.from_dict(settings), run_dir)
    show(run_dir)


def _resume(run_dir: Path, **changes: Any) -> None:
    from autocompress.api import resume

    resume(run_dir, **given_settings(changes))
    show(run_dir)


def _status(run_dir: Path, watch: bool) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from autocompress.report.status import status_lines
    from autocompress.results.run_folder import RunFolder

    folder = RunFolder(run_dir)
    if not watch:
        print("\n".join(status_lines(folder)))
        return
    with Live(Text(), console=Console(), auto_refresh=False) as live:
        while True:
            running = folder.driver() is not None
            live.update(Text("\n".join(status_lines(folder))), refresh=True)
            if not running:
                return
            time.sleep(_SECONDS)


def _refine(run_dir: Path, trial: int, epochs: int, learning_rate: float | None) -> None:
    from autocompress.execution.refine import refine
    from autocompress.results.records import Rung
    from autocompress.results.run_folder import RunFolder

    def tell(rung: Rung) -> None:
        print(f"  after {rung.steps} steps: " + ", ".join(f"{k} {v:.4f}" for k, v in rung.metrics.items()), flush=True)

    record = refine(RunFolder(run_dir), trial, epochs, learning_rate, on_rung=tell)
    show(run_dir)
    on_front = record.number in {point.number for point in RunFolder(run_dir).read().front.points}
    where = "on the front" if on_front else "not on the front"
    print(f"trial {record.number}: trial {trial} after {epochs} more epochs, {where}")


def _export(run_dir: Path, trial: int, runtime: str, threads: int | None, output: Path) -> None:
    from autocompress.execution.export_trial import export_trial
    from autocompress.results.run_folder import RunFolder

    record = export_trial(RunFolder(run_dir), trial, runtime, output, threads)
    print(numbers_line(record))
    print(f"model: {output}")
