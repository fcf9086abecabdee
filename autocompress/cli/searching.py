"""Commands that run trials: demo, search, resume."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import Any

from autocompress.cli.commands import add_command
from autocompress.cli.reporting import show
from autocompress.cli.task_options import add_task_options, take_task

DEMO_TRIALS = 24


def add_commands(commands: Any) -> None:
    """Adds demo, search and resume."""
    demo = add_command(commands, "demo", _demo, "search a small CNN on scikit-learn's bundled digits, end to end")
    demo.add_argument("--run-dir", type=Path, help="new folder for the run (default: runs/demo-DATE)")
    demo.add_argument("--trials", type=int, default=DEMO_TRIALS, help="trials in all (default: %(default)s)")
    demo.add_argument("--workers", type=int, default=2, help="trials at the same time (default: %(default)s)")

    search = add_command(commands, "search", _search, "search the Pareto front of a task's model")
    search.add_argument("task", metavar="TASK")
    add_task_options(search)
    search.add_argument("--run-dir", type=Path, help="new folder for the run (default: runs/TASK)")
    search.add_argument("--config", type=Path, help="YAML file with any of these settings and `distill`; flags win")
    search.add_argument("--space", help="name in search_spaces/ or a .yaml file (default: default)")
    search.add_argument(
        "--latency-budget",
        help="0.5x of the uncompressed latency, or 2.0ms; several with commas (default: the whole front)",
    )
    search.add_argument(
        "--min-accuracy", type=float, help="smallest useful value of the metric (default: half of the uncompressed)"
    )
    search.add_argument("--size-budget-mib", type=float, help="largest size of the runtime's file (default: none)")
    search.add_argument(
        "--memory-budget-mib", type=float, help="most memory that running a file of the front may take (default: none)"
    )
    search.add_argument(
        "--trials", dest="n_trials", type=int, help="trials in all (default: 40, or with --minutes as many as fit)"
    )
    search.add_argument("--minutes", type=float, help="time limit of the trials, all of which is used (default: none)")
    search.add_argument("--patience", type=int, help="ends after so many trials without gain (default: never)")
    _add_resources(search)
    search.add_argument(
        "--profile",
        dest="latency_model",
        metavar="DEVICE.json",
        help="predicts latencies by this profile (see `autocompress profile`)",
    )
    search.add_argument(
        "--force-profile",
        dest="force_latency_model",
        action="store_true",
        default=None,
        help="take a profile of another runtime version, device or batch all the same",
    )
    search.add_argument("--runtime", help="target runtime (default: onnxruntime)")
    search.add_argument("--threads", dest="n_threads", type=int, help="threads of the target runtime (default: 1)")
    search.add_argument("--sampler", help="solver, tpe, nsga2, random or package.module:function (default: solver)")
    search.add_argument("--sensitivity", help="what each choice costs: measured or fisher (default: measured)")
    search.add_argument(
        "--early-stopping",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="ends fine-tunes whose Pareto rank is low (default: on)",
    )
    search.add_argument("--importance", help="which channels matter: l2, l1, fpgm, bn_scale, taylor, ... (default: l2)")
    search.add_argument(
        "--reconstruct",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="refit layers that lost inputs by least squares on the calibration batches (default: on)",
    )
    search.add_argument("--seed", type=int, help="of the sampler and the training batches (default: 0)")
    search.add_argument(
        "--latency-resource",
        metavar="NAME",
        help="Ray resource of the machine that the model is for: files are timed there (default: this machine)",
    )
    search.add_argument(
        "--log-to", dest="loggers", type=_names, metavar="NAMES", help="tensorboard, mlflow, wandb (with commas)"
    )
    search.add_argument(
        "--rungs", type=_integers, help="fine-tune steps at which a student is judged (default: 0,20,60,180)"
    )
    search.add_argument("--learning-rate", type=float, help="peak learning rate of the fine-tune (default: 0.01)")

    resume = add_command(commands, "resume", _resume, "go on with a search that was stopped or killed")
    resume.add_argument("run_dir", metavar="RUN", type=Path)
    resume.add_argument("--trials", dest="n_trials", type=int, help="a new total of trials (default: as before)")
    resume.add_argument("--minutes", type=float, help="a new time limit of the trials (default: none)")
    _add_resources(resume)


def _add_resources(command: argparse.ArgumentParser) -> None:
    """What may be another one on each start: where trials run, on what, and how long."""
    command.add_argument(
        "--workers",
        "--max-concurrent",
        dest="n_workers",
        type=int,
        help="trials at the same time (default: as many as there are CPUs for)",
    )
    command.add_argument("--cpus-per-trial", type=float, help="CPUs that a trial reserves (default: 1)")
    command.add_argument("--gpus-per-trial", type=float, help="GPUs that a trial reserves, fractions too (default: 0)")
    command.add_argument("--trial-minutes", type=float, help="a trial fails after so long (default: no limit)")
    command.add_argument("--trial-retries", type=int, help="restarts of a trial whose worker died (default: 3)")
    command.add_argument("--ray-address", help="of a running Ray cluster, or auto (default: a local one)")
    command.add_argument(
        "--dashboard", action="store_true", default=None, help="show the dashboard of a local Ray (default: off)"
    )


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"whole numbers with commas like 0,20,60, but got {text!r}") from None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


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


def _search(
    task: str,
    run_dir: Path | None,
    config: Path | None,
    rungs: list[int] | None,
    learning_rate: float | None,
    **flags: Any,
) -> None:
    from autocompress.config import read_settings

    named = take_task(task, flags)
    settings = read_settings(config) if config is not None else {}
    settings |= {name: value for name, value in flags.items() if value is not None}
    given = {"rungs": rungs, "learning_rate": learning_rate}
    distill = {name: value for name, value in given.items() if value is not None}
    if distill:
        settings["distill"] = {**settings.get("distill", {}), **distill}
    name = "".join(letter if letter.isalnum() else "-" for letter in Path(task.split("?")[0]).name.replace(".py", ""))
    _run_search(named, run_dir or Path("runs") / name, settings)


def _run_search(task: str, run_dir: Path, settings: dict[str, Any]) -> None:
    from autocompress.api import run_new
    from autocompress.config import SearchSettings

    run_new(task, SearchSettings.from_dict(settings), run_dir)
    show(run_dir)


def _resume(run_dir: Path, **changes: Any) -> None:
    from autocompress.api import resume

    resume(run_dir, **{name: value for name, value in changes.items() if value is not None})
    show(run_dir)
