"""Commands that look at a model and run nothing: inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.cli.commands import add_command, add_task_options, take_task


def add_commands(commands: Any) -> None:
    """Adds inspect."""
    inspect = add_command(
        commands, "inspect", _inspect, "show layers, channel groups, branches, and what is frozen and why"
    )
    inspect.add_argument("task", metavar="TASK")
    add_task_options(inspect)
    inspect.add_argument("--space", help="also show the choices that this search space offers")
    inspect.add_argument("--runtime", help="also show what this runtime executes at each precision, and what it stores")
    inspect.add_argument(
        "--profile", type=Path, metavar="JSON", help="with --space: label ranks that this device does not run faster"
    )


def _inspect(task: str, space: str | None, runtime: str | None, profile: Path | None, **flags: Any) -> None:
    from functools import partial

    from rich.console import Console

    from autocompress.errors import InputError
    from autocompress.graph import inspect_model, without_bits
    from autocompress.latency import LatencyModel
    from autocompress.latency.online_predictor import label_slower_ranks
    from autocompress.report.inspection import capability_table, graph_tables, space_table
    from autocompress.runtimes import is_executed, runtime_named
    from autocompress.space.search_space import SearchSpace
    from autocompress.task import check_task, load_task
    from autocompress.task_access import examples_of, model_of

    if profile is not None and space is None:
        raise InputError("--profile labels the choices of a search space; name it with --space")
    loaded = load_task(take_task(task, flags))
    for note in getattr(loaded, "notes", list)():
        print(note)
    if getattr(loaded, "has_data", True):
        check_task(loaded)
    graph = inspect_model(model_of(loaded), examples_of(loaded))
    engine = runtime_named(runtime) if runtime is not None else None
    offered = None if space is None else SearchSpace.load(space, graph)
    if offered is not None and engine is not None:
        offered = offered.label_bits(graph, partial(is_executed, engine.capabilities()))
    if offered is not None and profile is not None:
        model = LatencyModel.load(profile)
        model.require_model(graph)
        offered = label_slower_ranks(offered, model)
    console = Console()
    missing = without_bits(graph)
    if missing is not None:
        console.print(missing, style="bold", highlight=False, soft_wrap=True)
    for table in graph_tables(graph):
        console.print(table)
    if engine is not None:
        console.print(capability_table(engine, graph))
    if offered is not None:
        console.print(space_table(offered))
        for note in offered.notes:
            console.print(note, markup=False)
