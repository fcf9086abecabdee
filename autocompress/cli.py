"""The command line: one function per command, heavy imports only inside the command that needs them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from autocompress.errors import AutocompressError

_EXAMPLES = """\
examples:
  autocompress demo                                      a front and a report in a few minutes, embedded data
  autocompress inspect my_model.py:task                  layers, channel groups, what is frozen and why
  autocompress search my_model.py:task --latency-budget 0.5x --trials 100
  autocompress resume runs/my_model                      goes on after Ctrl-C, a crash or a power cut
  autocompress report runs/my_model                      one HTML page, CSV
  autocompress pick runs/my_model --latency-budget 1.5ms -o model/

A TASK is a ready-made name (digits, cifar10:resnet20, cifar10:resnet56), file.py:name or package.module:name.
A budget is a share of the uncompressed model's latency (0.5x) or milliseconds (2.0ms).
"""

DEMO_TRIALS = 24


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or 2 when something the user gave is wrong."""
    args = vars(_parser().parse_args(argv))
    command: Callable[..., None] = args.pop("command")
    try:
        command(**args)
    except AutocompressError as error:
        print(f"autocompress: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("autocompress: stopped; `autocompress resume` goes on from what is on disk", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autocompress",
        description="Searches compressed versions of a trained PyTorch model under a measured latency budget.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = _add(commands, "demo", _demo, "search a small CNN on scikit-learn's bundled digits, end to end")
    demo.add_argument("--run-dir", type=Path, help="new folder for the run (default: runs/demo-DATE)")
    demo.add_argument("--trials", type=int, default=DEMO_TRIALS, help="trials in all (default: %(default)s)")
    demo.add_argument("--workers", type=int, default=2, help="trials at the same time (default: %(default)s)")

    inspect = _add(commands, "inspect", _inspect, "show layers, channel groups, branches, and what is frozen and why")
    inspect.add_argument("task", metavar="TASK")
    inspect.add_argument("--space", help="also show the choices that this search space offers")

    search = _add(commands, "search", _search, "search the Pareto front of a task's model")
    search.add_argument("task", metavar="TASK")
    search.add_argument("--run-dir", type=Path, help="new folder for the run (default: runs/TASK)")
    search.add_argument("--config", type=Path, help="YAML file with any of these settings and `distill`; flags win")
    search.add_argument("--space", help="name in search_spaces/ or a .yaml file (default: default)")
    search.add_argument(
        "--latency-budget", help="0.5x of the uncompressed latency, or 2.0ms (default: the whole front)"
    )
    search.add_argument(
        "--min-accuracy", type=float, help="smallest useful value of the metric (default: half of the uncompressed)"
    )
    search.add_argument("--trials", dest="n_trials", type=int, help="trials in all (default: 40)")
    search.add_argument("--minutes", type=float, help="time limit of the trials (default: none)")
    search.add_argument("--workers", dest="n_workers", type=int, help="trials at the same time (default: one per core)")
    search.add_argument("--runtime", help="target runtime (default: onnxruntime)")
    search.add_argument("--threads", dest="n_threads", type=int, help="threads of the target runtime (default: 1)")
    search.add_argument("--sampler", help="tpe, nsga2, random or package.module:function (default: tpe)")
    search.add_argument("--importance", help="which channels matter: l2, l1, fpgm, bn_scale, taylor, ... (default: l2)")
    search.add_argument("--seed", type=int, help="of the sampler and the training batches (default: 0)")
    search.add_argument("--ray-address", help="of a running Ray cluster, or auto (default: a local one)")
    search.add_argument(
        "--rungs", type=_integers, help="fine-tune steps at which a student is judged (default: 0,20,60,180)"
    )
    search.add_argument("--learning-rate", type=float, help="peak learning rate of the fine-tune (default: 0.01)")

    resume = _add(commands, "resume", _resume, "go on with a search that was stopped or killed")
    resume.add_argument("run_dir", metavar="RUN", type=Path)
    resume.add_argument("--trials", dest="n_trials", type=int, help="a new total of trials (default: as before)")
    resume.add_argument("--minutes", type=float, help="a new time limit of the trials (default: none)")

    report = _add(commands, "report", _report, "write a run's report: one HTML page and a CSV")
    report.add_argument("run_dir", metavar="RUN", type=Path)
    report.add_argument("--text", action="store_true", help="only print the front as a table")

    pick = _add(commands, "pick", _pick, "copy one point of the front: the most accurate that fits")
    pick.add_argument("run_dir", metavar="RUN", type=Path)
    pick.add_argument("--latency-budget", help="0.5x of the uncompressed latency, or 1.5ms")
    pick.add_argument("--min-accuracy", type=float, help="the fastest point of at least this metric (selection split)")
    pick.add_argument("--trial", type=int, help="that trial")
    pick.add_argument("-o", "--output", type=Path, required=True, help="new folder for the model")
    return parser


def _add(commands: Any, name: str, function: Callable[..., None], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.set_defaults(command=function)
    return parser


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"whole numbers with commas like 0,20,60, but got {text!r}") from None


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

    settings = read_settings(config) if config is not None else {}
    settings |= {name: value for name, value in flags.items() if value is not None}
    given = {"rungs": rungs, "learning_rate": learning_rate}
    distill = {name: value for name, value in given.items() if value is not None}
    if distill:
        settings["distill"] = {**settings.get("distill", {}), **distill}
    name = "".join(letter if letter.isalnum() else "-" for letter in Path(task).name.replace(".py", ""))
    _run_search(task, run_dir or Path("runs") / name, settings)


def _run_search(task: str, run_dir: Path, settings: dict[str, Any]) -> None:
    from autocompress.automl import run_new
    from autocompress.config import SearchSettings

    run_new(task, SearchSettings.from_dict(settings), run_dir)
    _show(run_dir)


def _resume(run_dir: Path, n_trials: int | None, minutes: float | None) -> None:
    from autocompress.automl import resume

    resume(run_dir, n_trials=n_trials, minutes=minutes)
    _show(run_dir)


def _report(run_dir: Path, text: bool) -> None:
    from autocompress.report.files import write_front_table, write_report
    from autocompress.run_folder import RunFolder

    if not text:
        run = RunFolder(run_dir).read()
        write_front_table(run)
        write_report(run)
    _show(run_dir, files=not text)


def _show(run_dir: Path, files: bool = True) -> None:
    """Prints the front, its files, and where the report is."""
    from rich.console import Console

    from autocompress.report.table import front_table
    from autocompress.run_folder import RunFolder

    run = RunFolder(run_dir).read()
    console = Console()
    console.print(front_table(run))
    if not files:
        return
    for point in run.front.points:
        for file in sorted(run.folder.point(point.name).glob("model.*")):
            print(f"  {file}")
    print(f"table:  {run.folder.table}")
    print(f"report: {run.folder.report.resolve()}")


def _pick(
    run_dir: Path, latency_budget: str | None, min_accuracy: float | None, trial: int | None, output: Path
) -> None:
    import shutil

    from autocompress.errors import InputError
    from autocompress.run_folder import RunFolder

    if output.exists():
        raise InputError(f"-o must name a new folder, but {output} exists")
    run = RunFolder(run_dir).read()
    point = run.front.pick(latency_budget=latency_budget, min_accuracy=min_accuracy, trial=trial)
    source = run.folder.point(point.name)
    if not source.is_dir():
        raise InputError(f"{point.name} has no files yet; `autocompress resume {run_dir}` measures the front")
    shutil.copytree(source, output)
    numbers = point.file
    if numbers is not None:
        test = ", ".join(f"{name} {value:.4f}" for name, value in numbers.metrics.get("test", {}).items())
        print(f"{point.name}: {numbers.latency.ms:.3f} ms ({numbers.latency.ratio:.3f}x), test {test}")
    print(f"model: {output}")


def _inspect(task: str, space: str | None) -> None:
    from rich.console import Console

    from autocompress.graph import inspect_model
    from autocompress.report.inspection import graph_tables, space_table
    from autocompress.space import SearchSpace
    from autocompress.task import as_inputs, load_task

    loaded = load_task(task)
    graph = inspect_model(loaded.build_model(), as_inputs(loaded.example_inputs()))
    console = Console()
    for table in graph_tables(graph):
        console.print(table)
    if space is not None:
        console.print(space_table(SearchSpace.load(space, graph)))


if __name__ == "__main__":
    sys.exit(main())
