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
