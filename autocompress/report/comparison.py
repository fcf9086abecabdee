"""Points side by side, as tables and as plain values: figures, layers that differ, and what holds each back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from autocompress.errors import InputError
from autocompress.report.interval import interval_of
from autocompress.report.point_files import PointFiles, read_point_files
from autocompress.report.why import Finding, why_not_faster
from autocompress.report.wording import NOTHING, candidate_text, is_number, metric_text, plain_text
from autocompress.results.columns import row
from autocompress.results.records import Latency, TrialRecord
from autocompress.results.run_folder import Run
from autocompress.space.candidate import Candidate

SCHEMA_VERSION = 1
Cell = Callable[[TrialRecord], str]


def comparison(run: Run, numbers: Sequence[int]) -> Iterator[Table]:
    """Tables of these trials side by side.

    Raises:
        InputError: the run has no such trial.
    """
    shown = _named(run, numbers)
    yield _figures(run, shown)
    layers = _layers(run, shown)
    if layers.row_count:
        yield layers
    findings = _findings(run, shown)
    if findings.row_count:
        yield findings


def comparison_data(run: Run, numbers: Sequence[int]) -> dict[str, Any]:
    """The same as plain JSON values; `docs/agents.md` says what they mean.

    Raises:
        InputError: the run has no such trial.
    """
    shown = _named(run, numbers)
    metric, differing = run.info.objectives.metric, _differing(run, shown)
    causes = dict(_causes(run, shown))
    return {
        "schema": SCHEMA_VERSION,
        "run": str(run.folder.path),
        "metric": metric,
        "trials": [
            {
                **row(record, metric),
                "what": candidate_text(record.candidate, len(run.info.layers)),
                "candidate": record.candidate.to_dict(),
                "causes": [asdict(finding) for finding in causes[record.number]],
            }
            for record in shown
        ],
        "layers_that_differ": [{"layer": path, "choices": cells} for path, cells in differing],
    }


def _named(run: Run, numbers: Sequence[int]) -> list[TrialRecord]:
    by_number = {record.number: record for record in run.records}
    missing = [number for number in numbers if number not in by_number]
    if missing:
        raise InputError(f"this run has the trials {_ranges(by_number)}, but got {missing[0]}")
    return [by_number[number] for number in numbers]


def _ranges(numbers: Iterable[int]) -> str:
    """`0 to 4, 7`, of numbers in any order; `none` of none."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in ranges) or "none"


def _figures(run: Run, shown: Sequence[TrialRecord]) -> Table:
    table = _table("", *(f"trial {record.number}" for record in shown))
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
        table.add_row(plain_text(name), *(plain_text(cell(record)) for record in shown))
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
    table = _table("layers that differ", *(f"trial {record.number}" for record in shown))
    for path, cells in _differing(run, shown):
        table.add_row(plain_text(path), *map(plain_text, cells))
    return table


def _differing(run: Run, shown: Sequence[TrialRecord]) -> list[tuple[str, list[str]]]:
    """Paths of layers, each with what the trials do to it."""
    rows = [(str(layer["path"]), [_choices(record.candidate, layer) for record in shown]) for layer in run.info.layers]
    return [(path, cells) for path, cells in rows if len(set(cells)) > 1]


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
    table = _table("why is it not faster?", "share of the time", "cause", first="trial")
    for number, causes in _causes(run, shown):
        for finding in causes:
            table.add_row(plain_text(str(number)), plain_text(f"{finding.share:.0%}"), plain_text(finding.text))
    return table


def _causes(run: Run, shown: Sequence[TrialRecord]) -> Iterator[tuple[int, list[Finding]]]:
    """What keeps each trial from being faster, by its number; nothing for the uncompressed model."""
    paths = [str(layer["path"]) for layer in run.info.layers]
    baseline = run.front.baseline
    before = PointFiles() if baseline is None else read_point_files(run.folder.point(baseline.name), paths)
    for record in shown:
        after = read_point_files(run.folder.point(record.name), paths)
        yield record.number, [] if record is baseline else why_not_faster(record.candidate, before, after, paths)


def _table(title: str, *heads: str, first: str = "") -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=plain_text(title) if title else None, title_justify="left", pad_edge=False)
    for head in (first, *heads):
        table.add_column(plain_text(head), overflow="fold")
    return table
