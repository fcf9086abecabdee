"""Tables for a terminal: the front, two points side by side, a model's layers and a space's choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from autocompress.errors import InputError
from autocompress.graph import ModelGraph
from autocompress.report.point_files import PointFiles, read_point_files
from autocompress.report.why import why_not_faster
from autocompress.report.wording import (
    NOTHING,
    budget_text,
    candidate_text,
    interval_of,
    is_number,
    likeness_text,
    metric_text,
)
from autocompress.results.objectives import score
from autocompress.results.records import Latency, TrialRecord
from autocompress.results.run_folder import Run
from autocompress.runtimes import Runtime, saturates
from autocompress.space.candidate import PRECISIONS, Candidate
from autocompress.space.search_space import Choice, Knob, SearchSpace


def front_table(run: Run) -> Table:
    """The uncompressed model, then the front, fastest first; readable without colour.

    Latency, size and the metric come from the exported file where there is one, else from the search.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title=_title(run),
        caption=_caption(run),
        caption_justify="left",
    )
    metric = run.info.objectives.metric
    heads = (
        "trial",
        f"{metric}\non test",
        f"{metric}\nselection",
        "latency\nms",
        "share of full\nlatency",
        "size\nMiB",
    )
    for head in heads:
        table.add_column(Text(head), justify="right", no_wrap=True)
    table.add_column("what was done")
    baseline = run.front.baseline
    if baseline is not None:
        table.add_row(*_cells(baseline, run), style="dim")
    for point in run.front.points:
        if not point.candidate.is_baseline:
            table.add_row(*_cells(point, run))
    return table


def _title(run: Run) -> Text:
    n_failed = sum(record.state == "failed" for record in run.records)
    failed = f" ({n_failed} failed)" if n_failed else ""
    return Text(f"{run.info.task}: {len(run.front.points)} on the front of {len(run.records)} trials{failed}")


def _caption(run: Run) -> Text:
    lines = [budget_text(run.info.objectives)]
    if not run.front.points:
        lines.append("no trial has both a latency and a score yet, so there is no front")
    elif any(point.file is None for point in run.front.points):
        lines.append(f"{NOTHING} on test: that point has no exported file yet")
    likeness = likeness_text(run.info.objectives.metric)
    if likeness is not None:
        lines.append(likeness)
    if run.front.reason:
        lines.append(run.front.reason)
    return Text("\n".join(lines))


def _cells(record: TrialRecord, run: Run) -> list[Text]:
    """One row; `Text` keeps square brackets in names from being read as markup."""
    metric = run.info.objectives.metric
    latency = record.file.latency if record.file is not None else record.latency
    size = record.file.size_mib if record.file is not None else record.size_mib
    test = record.file.metrics.get("test", {}).get(metric) if record.file is not None else None
    timed = latency is not None and is_number(latency.ratio)
    cells = [
        str(record.number),
        metric_text(test, metric),
        metric_text(score(record, metric), metric),
        f"{latency.ms:.3f}" if latency is not None and is_number(latency.ms) else NOTHING,
        f"{latency.ratio:.3f} ± {latency.spread:.3f}" if latency is not None and timed else NOTHING,
        f"{size:.3f}" if is_number(size) else NOTHING,
        candidate_text(record.candidate, len(run.info.layers)),
    ]
    return [Text(cell) for cell in cells]


Cell = Callable[[TrialRecord], str]


def comparison(run: Run, numbers: Sequence[int]) -> Iterator[Table]:
    """Tables of these trials side by side.

    Raises:
        InputError: the run has no such trial.
    """
    by_number = {record.number: record for record in run.records}
    missing = [number for number in numbers if number not in by_number]
    if missing:
        raise InputError(f"trials of this run have the numbers 0 to {max(by_number, default=-1)}, but got {missing[0]}")
    shown = [by_number[number] for number in numbers]
    yield _figures(run, shown)
    layers = _layers(run, shown)
    if layers.row_count:
        yield layers
    findings = _findings(run, shown)
    if findings.row_count:
        yield findings


def _figures(run: Run, shown: Sequence[TrialRecord]) -> Table:
    table = _table("", "", *(f"trial {record.number}" for record in shown))
    metric = run.info.objectives.metric
    rows: list[tuple[str, Cell]] = [("what was done", lambda record: candidate_text(record.candidate))]
    splits = dict.fromkeys(split for record in shown if record.file for split in record.file.metrics)
    rows += [(f"{metric}, {split} (file)", lambda r, split=split: _metric(r, split, metric)) for split in splits]  # type: ignore[misc]
    rows += [
        ("latency (file)", lambda record: _latency(None if record.file is None else record.file.latency)),
        ("size", lambda record: _mib(record.file.size_mib if record.file else record.size_mib)),
        ("memory", lambda record: _mib(record.file.memory_mib if record.file else None)),
        (f"{metric}, seen by the search", lambda record: metric_text(record.metrics.get(metric), metric)),
        ("latency, seen by the search", lambda record: _latency(record.latency)),
        ("parameters", lambda record: f"{record.n_params:,}"),
        ("multiply-accumulates", lambda record: f"{record.n_macs:,}"),
    ]
    for name, cell in rows:
        table.add_row(Text(name), *(Text(cell(record)) for record in shown))
    return table


def _metric(record: TrialRecord, split: str, metric: str) -> str:
    if record.file is None:
        return NOTHING
    interval = interval_of(record.file, split, metric)
    bounds = f" ({', '.join(metric_text(end, metric) for end in interval)})" if interval else ""
    return metric_text(record.file.metrics.get(split, {}).get(metric), metric) + bounds


def _latency(latency: Latency | None) -> str:
    if latency is None or not is_number(latency.ratio):
        return NOTHING
    return f"{latency.ms:.3g} ms, {latency.ratio:.3f} ± {latency.spread:.3f} of full"


def _mib(value: float | None) -> str:
    return f"{value:.3g} MiB" if value is not None and is_number(value) else NOTHING


def _layers(run: Run, shown: Sequence[TrialRecord]) -> Table:
    """The layers that the trials compress in different ways."""
    table = _table("layers that differ", "", *(f"trial {record.number}" for record in shown))
    for layer in run.info.layers:
        cells = [_choices(record.candidate, layer) for record in shown]
        if len(set(cells)) > 1:
            table.add_row(Text(str(layer["path"])), *map(Text, cells))
    return table


def _choices(candidate: Candidate, layer: object) -> str:
    assert isinstance(layer, dict)
    path, group, branch = str(layer["path"]), layer.get("group"), layer.get("branch")
    if branch in candidate.drop:
        return "removed with its block"
    parts = []
    if candidate.prune_ratio.get(group or path):
        parts.append(f"{candidate.prune_ratio[group or path]:.0%} channels off")
    if path in candidate.rank_ratio:
        parts.append(f"rank {candidate.rank_ratio[path]}")
    if path in candidate.sparsity:
        parts.append(f"{candidate.sparsity[path]} zeros")
    if path in candidate.weight_bits:
        parts.append(f"{candidate.weight_bits[path]}-bit")
    return ", ".join(parts) or "as it was"


def _findings(run: Run, shown: Sequence[TrialRecord]) -> Table:
    table = _table("why is it not faster?", "trial", "share of the time", "cause")
    paths = [str(layer["path"]) for layer in run.info.layers]
    baseline = run.front.baseline
    before = PointFiles() if baseline is None else read_point_files(run.folder.point(baseline.name), paths)
    for record in shown:
        after = read_point_files(run.folder.point(record.name), paths)
        for finding in () if record is baseline else why_not_faster(record.candidate, before, after, paths):
            table.add_row(Text(str(record.number)), Text(f"{finding.share:.0%}"), Text(finding.text))
    return table


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


def _choice_text(knob: Knob, choice: Choice) -> str:
    if choice is None:
        return "as it is"
    text = choice if isinstance(choice, str) else f"{choice:g}"
    return f"{text} (size-only)" if choice in knob.size_only else text


def _table(title: str, *heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for head in heads:
        table.add_column(Text(head), overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(cell) for cell in cells))


def _names(names: tuple[str, ...], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
