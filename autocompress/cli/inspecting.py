"""Commands that look at a model and run nothing: inspect."""

from __future__ import annotations

from typing import Any

from autocompress.cli.commands import add_command


def add_commands(commands: Any) -> None:
    """Adds inspect."""
    inspect = add_command(
        commands, "inspect", _inspect, "show layers, channel groups, branches, and what is frozen and why"
    )
    inspect.add_argument("task", metavar="TASK")
    inspect.add_argument("--space", help="also show the choices that this search space offers")
    inspect.add_argument("--runtime", help="also show what this runtime executes at each precision, and what it stores")


def _inspect(task: str, space: str | None, runtime: str | None) -> None:
    from functools import partial

    from rich.console import Console

    from autocompress.graph import inspect_model
    from autocompress.report.inspection import capability_table, graph_tables, space_table
    from autocompress.runtimes import is_executed, runtime_named
    from autocompress.space import SearchSpace
    from autocompress.task import as_inputs, load_task

    loaded = load_task(task)
    graph = inspect_model(loaded.build_model(), as_inputs(loaded.example_inputs()))
    console = Console()
    for table in graph_tables(graph):
        console.print(table)
    engine = runtime_named(runtime) if runtime is not None else None
    if engine is not None:
        console.print(capability_table(engine, graph))
    if space is not None:
        offered = SearchSpace.load(space, graph)
        if engine is not None:
            offered = offered.label_bits(graph, partial(is_executed, engine.capabilities()))
        console.print(space_table(offered))
