"""Commands that run trials: demo, search, resume."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from autocompress.cli.commands import (
    add_command,
    add_settings,
    add_task_options,
    add_trust,
    given_settings,
    take_task,
)
from autocompress.cli.reporting import show
from autocompress.config import SearchSettings, read_settings
from autocompress.errors import StoppedError
from autocompress.settings_schema import declared_in

DEMO_TRIALS = 16


def add_commands(commands: Any) -> None:
    """Adds demo, search and resume."""
    demo = add_command(commands, "demo", _demo, "search a small CNN on scikit-learn's bundled digits, end to end")
    demo.add_argument("--run-dir", type=Path, help="new folder for the run (default: runs/demo-DATE)")
    demo.add_argument("--trials", type=int, default=DEMO_TRIALS, help="candidates to try (default: %(default)s)")
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
    add_trust(resume)
    resume.add_argument(
        "--rebuild-study", action="store_true", help="make a study that is missing or cut again from trials.jsonl"
    )
    add_settings(resume, [item for item in declared_in(SearchSettings) if item.setting.changeable])


def _demo(run_dir: Path | None, trials: int, workers: int) -> None:
    run_dir = run_dir or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    settings = {
        "space": "digits",
        "n_trials": trials,
        "n_workers": workers,
        "sensitivity": "fisher",
        "polish_points": 5,
        "polish_steps": 100,
        "distill": {"rungs": [0, 20], "learning_rate": 0.05},
    }
    _run_search("digits:noisy", run_dir, settings)
    print("\nNext:")
    for command, what in {
        f"autocompress pick {shlex.quote(str(run_dir))} --knee -o model": "one point, as files to keep",
        "python model/run.py": "run it",
        "autocompress search my_model.py:task --minutes 30": "your own model; see docs/start.md",
    }.items():
        print(f"  {command}    # {what}")


def _search(task: str, run_dir: Path | None, config: Path | None, **flags: Any) -> None:
    named = take_task(task, flags)
    settings = given_settings(flags, None if config is None else read_settings(config))
    name = "".join(letter if letter.isalnum() else "-" for letter in Path(task.split("?")[0]).name.replace(".py", ""))
    _run_search(named, run_dir or Path("runs") / name, settings)


def _run_search(task: str, run_dir: Path, settings: dict[str, Any]) -> None:
    from autocompress.api import run_new

    with _shown(run_dir):
        run_new(task, SearchSettings.from_dict(settings), run_dir)


def _resume(run_dir: Path, trust: bool, rebuild_study: bool, **changes: Any) -> None:
    from rich.console import Console

    from autocompress.api import run_again
    from autocompress.results.provenance import require_trust
    from autocompress.results.run_folder import RunFolder

    require_trust(RunFolder(run_dir), trust)
    with _shown(run_dir):
        run_again(run_dir, given_settings(changes), console=Console(), rebuild_study=rebuild_study)


@contextmanager
def _shown(run_dir: Path) -> Iterator[None]:
    """Prints what a search reached, also where a signal stopped it."""
    try:
        yield
    except StoppedError:
        show(run_dir)
        raise
    show(run_dir)
