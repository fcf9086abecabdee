"""Commands that read a run: report, pick, compare."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.cli.commands import add_command, add_json, print_json

if TYPE_CHECKING:
    from autocompress.results.records import TrialRecord


def add_commands(commands: Any) -> None:
    """Adds report, pick and compare."""
    report = add_command(commands, "report", _report, "write a run's report: one HTML page, CSV, JSON")
    report.add_argument("run_dir", metavar="RUN", type=Path)
    ways = report.add_mutually_exclusive_group()
    ways.add_argument("--text", action="store_true", help="only print the front as a table")
    ways.add_argument("--figure", type=Path, metavar="FILE", help="only draw the front: an .svg or a .png file")
    ways.add_argument("--serve", action="store_true", help="watch a running search in a browser, on this machine only")

    pick = add_command(commands, "pick", _pick, "copy one point of the front: the most accurate that fits")
    pick.add_argument("run_dir", metavar="RUN", type=Path)
    pick.add_argument("--latency-budget", help="0.5x of the uncompressed latency, or 1.5ms")
    pick.add_argument("--min-accuracy", type=float, help="the fastest point of at least this metric (selection split)")
    pick.add_argument("--trial", type=int, help="that trial")
    pick.add_argument("--knee", action="store_true", help="where giving up more of one for the other stops paying")
    pick.add_argument("--peer", action="store_true", help="the 8-bit file of the runtime's own tool, without a search")
    pick.add_argument("-o", "--output", type=Path, required=True, help="new folder for the model")
    add_json(pick)

    compare = add_command(
        commands, "compare", _compare, "show trials side by side, and what keeps them from being faster"
    )
    compare.add_argument("run_dir", metavar="RUN", type=Path)
    compare.add_argument("trials", metavar="N", type=int, nargs="+", help="numbers of trials")
    add_json(compare)


def _report(run_dir: Path, text: bool, figure: Path | None, serve: bool) -> None:
    from autocompress.report.files import write_front_table, write_report_page
    from autocompress.results.run_folder import RunFolder

    if serve:
        return _serve(run_dir)
    if figure is not None:
        return _figure(run_dir, figure)
    if not text:
        run = RunFolder(run_dir).read()
        write_front_table(run)
        write_report_page(run)
    return show(run_dir, files=not text)


def _serve(run_dir: Path) -> None:
    from autocompress.report.live import LiveServer
    from autocompress.results.run_folder import RunFolder

    with LiveServer(RunFolder(run_dir)) as server:
        print(f"{server.url} (only on this machine; Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("no longer served; the search continues")


def _figure(run_dir: Path, figure: Path) -> None:
    from autocompress.report.figure import write_figure
    from autocompress.results.run_folder import RunFolder

    write_figure(RunFolder(run_dir).read(), figure)
    print(f"figure: {figure}")


def _compare(run_dir: Path, trials: list[int], as_json: bool) -> None:
    from rich.console import Console

    from autocompress.report.comparison import comparison, comparison_data
    from autocompress.results.run_folder import RunFolder

    run = RunFolder(run_dir).read()
    if as_json:
        return print_json(comparison_data(run, trials))
    console = Console()
    for table in comparison(run, trials):
        console.print(table)
    return None


def show(run_dir: Path, files: bool = True) -> None:
    """Prints the front, its files, and where the report is."""
    from rich.console import Console

    from autocompress.report.table import front_table
    from autocompress.report.terminal_plot import front_plot
    from autocompress.results.run_folder import RunFolder

    run = RunFolder(run_dir).read()
    console = Console()
    console.print(front_table(run))
    picture = front_plot(run)
    if picture:
        print(picture)
    if not files:
        return
    for point in run.front.points:
        for file in sorted(run.folder.point(point.name).glob("model.*")):
            print(f"  {file}")
    print(f"table:  {run.folder.table}")
    print(f"report: {run.folder.report.resolve()}")


def _pick(run_dir: Path, peer: bool, output: Path, as_json: bool, **conditions: Any) -> None:
    from autocompress.errors import InputError
    from autocompress.publishing.point_folder import copy_point
    from autocompress.report.commands import resume_command
    from autocompress.results.columns import row
    from autocompress.results.run_folder import RunFolder, check_output

    check_output(output)
    if peer:
        if any(value is not None and value is not False for value in conditions.values()):
            raise InputError("--peer stands alone: it is one file, whatever the budget; leave the other conditions out")
        return _pick_peer(run_dir, output, as_json)
    run = RunFolder(run_dir).read()
    point = run.front.pick(**conditions)
    source = run.folder.point(point.name)
    if not source.is_dir():
        raise InputError(f"{point.name} has no files yet; {resume_command(run_dir)} measures the front")
    copy_point(source, output)
    if as_json:
        figures = row(point, run.front.metric)
        return print_json(
            {"schema": 1, "name": point.name, "model": str(output), "run": str(output / "run.py"), **figures}
        )
    print(numbers_line(point))
    print(f"model: {output}")
    print(f"run:   python {output / 'run.py'}")
    return None


def _pick_peer(run_dir: Path, output: Path, as_json: bool) -> None:
    from autocompress.errors import InputError
    from autocompress.publishing.point_folder import copy_files, require_digests
    from autocompress.report.commands import resume_command
    from autocompress.results.peer import read_peer
    from autocompress.results.run_folder import RunFolder

    folder = RunFolder(run_dir).peer
    peer = read_peer(folder)
    if peer is None:
        raise InputError(
            f"{run_dir} has no file of the runtime's own tool: it has none, or the search has not ended; "
            f"{resume_command(run_dir)} measures it"
        )
    require_digests(folder, peer.digests)
    copy_files(folder, output)
    if as_json:
        return print_json({"schema": 1, **asdict(peer), "model": str(output), "file": str(output / peer.file)})
    test = ", ".join(f"{name} {value:.4f}" for name, value in peer.metrics.get("test", {}).items())
    print(f"{peer.name}: {peer.latency.ms:.3f} ms ({peer.latency.ratio:.3f}x), test {test}")
    print(f"model: {output / peer.file}")
    return None


def numbers_line(point: TrialRecord) -> str:
    """A point's figures, from its file."""
    numbers = point.file
    if numbers is None:
        return f"{point.name}: no file was measured"
    test = ", ".join(f"{name} {value:.4f}" for name, value in numbers.metrics.get("test", {}).items())
    return f"{point.name}: {numbers.latency.ms:.3f} ms ({numbers.latency.ratio:.3f}x), test {test}"
