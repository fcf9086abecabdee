"""A model's layers, channel groups and branches as tables for a terminal, and as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table

from autocompress.graph import ModelGraph, without_bits
from autocompress.report.wording import plain_text
from autocompress.runtimes import Runtime, saturates
from autocompress.space.candidate import PRECISIONS
from autocompress.space.search_space import Choice, Knob, SearchSpace


def graph_tables(graph: ModelGraph) -> Iterator[Table]:
    """Layers, channel groups, residual branches, and what is frozen with the reason; empty tables are left out."""
    layers = _table(f"layers: {graph.n_params:,} parameters, {graph.n_macs:,} MACs", "layer", "kind", "weight", "MACs")
    for layer in graph.layers:
        shape = " × ".join(map(str, layer.weight_shape))
        _row(layers, layer.path, layer.kind, shape, f"{layer.n_macs:,}")
    groups = _table("channel groups: channels that go together", "group", "channels", "produced by", "read by")
    for group in graph.groups:
        count = ", or ".join(map(str, (group.n_channels, *group.sizes)))
        _row(groups, group.name, count, _names(group.producers), _names(group.consumers))
    branches = _table("residual branches: blocks that can become their shortcut", "block", "layers")
    for branch in graph.branches:
        _row(branches, branch.name, _names(branch.layers))
    frozen = _table("frozen: left as it is", "name", "knob", "reason")
    for item in graph.frozen:
        _row(frozen, item.name, item.what, item.reason)
    yield from (table for table in (layers, groups, branches, frozen) if table.row_count)


def space_table(space: SearchSpace) -> Table:
    """Every knob with its choices."""
    table = _table(f"search space {space.name}: {space.size:.3g} candidates", "knob", "about", "choices")
    for knob in space.knobs:
        _row(table, knob.kind, knob.target, ", ".join(_choice_text(knob, choice) for choice in knob.choices))
    return table


def capability_table(runtime: Runtime, graph: ModelGraph) -> Table:
    """The kinds of layers that the runtime executes at each precision, of those in the model."""
    kinds = list(dict.fromkeys(layer.kind for layer in graph.layers))
    kernels = {item.precision: item.kernels for item in runtime.capabilities()}
    table = _table(f"what {runtime.name} executes here", "weight_bits", *kinds)
    for precision in PRECISIONS:
        found = kernels.get(precision, {})
        _row(table, str(precision), *(found.get(kind, "size-only") for kind in kinds))
    if saturates(runtime):
        table.caption = (
            "8-bit kernels saturate on this CPU: int8 weights that meet integer inputs stay within [-63, 63]"
        )
    return table


def inspection_data(graph: ModelGraph, runtime: Runtime | None, space: SearchSpace | None) -> dict[str, Any]:
    """What the tables show as plain JSON values; `docs/agents.md` says what they mean."""
    return {
        "schema": 1,
        "n_params": graph.n_params,
        "n_macs": graph.n_macs,
        "layers": [_fields(layer, "path", "kind", "weight_shape", "n_params", "n_macs") for layer in graph.layers],
        "groups": [_fields(group, "name", "n_channels", "sizes", "producers", "consumers") for group in graph.groups],
        "branches": [_fields(branch, "name", "layers") for branch in graph.branches],
        "frozen": [_fields(item, "name", "what", "reason", "n_places") for item in graph.frozen],
        "without_bits": without_bits(graph),
        "runtime": None if runtime is None else _runtime_data(runtime),
        "space": None if space is None else _space_data(space),
    }


def _runtime_data(runtime: Runtime) -> dict[str, Any]:
    executes = {str(item.precision): dict(item.kernels) for item in runtime.capabilities() if item.kernels}
    return {"name": runtime.name, "executes": executes, "saturates": saturates(runtime)}


def _space_data(space: SearchSpace) -> dict[str, Any]:
    knobs = [_fields(knob, "name", "kind", "target", "choices", "size_only") for knob in space.knobs]
    log10_size = sum(math.log10(len(knob.choices)) for knob in space.knobs)  # the size itself may have 1000 digits
    return {"name": space.name, "log10_size": log10_size, "knobs": knobs, "notes": list(space.notes)}


def _fields(item: object, *names: str) -> dict[str, Any]:
    return {name: getattr(item, name) for name in names}


def _choice_text(knob: Knob, choice: Choice) -> str:
    if choice is None:
        return "as it is"
    text = choice if isinstance(choice, str) else f"{choice:g}"
    return f"{text} (size-only)" if choice in knob.size_only else text


def _table(title: str, *heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(plain_text(cell) for cell in cells))


def _names(names: tuple[str, ...], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
