"""Commands that look at a model and run nothing: inspect."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.cli.commands import add_command, add_json, add_task_options, print_json, take_task

if TYPE_CHECKING:
    from autocompress.graph import ModelGraph
    from autocompress.runtimes import Runtime
    from autocompress.space.search_space import SearchSpace


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
    add_json(inspect)


@dataclass(frozen=True)
class _Seen:
    """What was found: the model's graph, the runtime and the space where they were asked for, and notes on the task."""

    graph: ModelGraph
    runtime: Runtime | None
    space: SearchSpace | None
    notes: list[str]


def _inspect(task: str, as_json: bool, **options: Any) -> None:
    if not as_json:
        return _show(_look(task, **options))
    from autocompress.report.inspection import inspection_data

    with redirect_stdout(sys.stderr):  # whatever the task's own code prints
        seen = _look(task, **options)
        data = inspection_data(seen.graph, seen.runtime, seen.space)
    return print_json({"task": task, "notes": seen.notes, **data})


def _look(task: str, space: str | None, runtime: str | None, profile: Path | None, **flags: Any) -> _Seen:
    from functools import partial

    from autocompress.errors import InputError
    from autocompress.graph import inspect_model
    from autocompress.latency import LatencyModel
    from autocompress.latency.online_predictor import label_slower_ranks
    from autocompress.runtimes import is_executed, runtime_named
    from autocompress.space.search_space import SearchSpace
    from autocompress.task import load_task
    from autocompress.task_access import examples_of, model_of
    from autocompress.task_check import check_task

    if profile is not None and space is None:
        raise InputError("--profile labels the choices of a search space; name it with --space")
    loaded = load_task(take_task(task, flags))
    notes = list(getattr(loaded, "notes", list)())
    for note in notes:
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
    return _Seen(graph, engine, offered, notes)


def _show(seen: _Seen) -> None:
    from rich.console import Console

    from autocompress.graph import without_bits
    from autocompress.report.inspection import capability_table, graph_tables, space_table

    console = Console()
    missing = without_bits(seen.graph)
    if missing is not None:
        console.print(missing, style="bold", highlight=False, soft_wrap=True)
    for table in graph_tables(seen.graph):
        console.print(table)
    if seen.runtime is not None:
        console.print(capability_table(seen.runtime, seen.graph))
    if seen.space is not None:
        console.print(space_table(seen.space))
        for note in seen.space.notes:
            console.print(note, markup=False)
