"""Commands about a run that has trials: report, pick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.cli.commands import add_command


def add_commands(commands: Any) -> None:
    """Adds report and pick."""
    report = add_command(commands, "report", _report, "write a run's report: one HTML page and a CSV")
    report.add_argument("run_dir", metavar="RUN", type=Path)
    report.add_argument("--text", action="store_true", help="only print the front as a table")

    pick = add_command(commands, "pick", _pick, "copy one point of the front: the most accurate that fits")
    pick.add_argument("run_dir", metavar="RUN", type=Path)
    pick.add_argument("--latency-budget", help="0.5x of the uncompressed latency, or 1.5ms")
    pick.add_argument("--min-accuracy", type=float, help="the fastest point of at least this metric (selection split)")
    pick.add_argument("--trial", type=int, help="that trial")
    pick.add_argument("-o", "--output", type=Path, required=True, help="new folder for the model")


def _report(run_dir: Path, text: bool) -> None:
    from autocompress.report.files import write_front_table, write_report
    from autocompress.run_folder import RunFolder

    if not text:
        run = RunFolder(run_dir).read()
        write_front_table(run)
        write_report(run)
    show(run_dir, files=not text)


def show(run_dir: Path, files: bool = True) -> None:
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
