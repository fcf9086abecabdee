"""The front as a table for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from autocompress.report.wording import (
    NOTHING,
    budget_text,
    candidate_text,
    is_number,
    likeness_text,
    metric_text,
    plain_text,
)
from autocompress.results.objectives import ratio, score
from autocompress.results.pareto import ParetoFront
from autocompress.results.peer import Peer, peer_text, read_peer
from autocompress.results.records import WHOLE_MODEL, TrialRecord
from autocompress.results.run_folder import Run


def front_table(run: Run) -> Table:
    """What there is without a search, then the front, fastest first; readable without colour.

    The first rows are the uncompressed model, the model at the runtime's own precisions without training, and what the
    runtime's own tool makes of it, the slowest first. Each trial is listed once. Latency, size and the metric come from
    the exported file where there is one, else from the search.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title=_title(run),
        caption=_caption(run),
        caption_justify="left",
    )
    metric, n_layers = run.info.objectives.metric, len(run.info.layers)
    *figures, last = heads(metric)
    for head in figures:
        table.add_column(plain_text(head), justify="right", no_wrap=True)
    table.add_column(last)
    given = without_search(run.records, run.front)
    peer = read_peer(run.folder.peer)
    rows = [(-_share(ratio(record)), cells_of(record, run.front, n_layers)) for record in given]
    if peer is not None:
        rows.append((-_share(peer.latency.ratio), _peer_cells(peer, metric)))
    for _, cells in sorted(rows, key=lambda item: item[0]):
        table.add_row(*map(plain_text, cells), style="dim")
    listed = {record.number for record in given}
    for point in run.front.points:
        if point.number not in listed:
            table.add_row(*map(plain_text, cells_of(point, run.front, n_layers)))
    return table


def heads(metric: str) -> tuple[str, ...]:
    """Titles of the columns of `cells_of`."""
    return (
        "trial",
        f"{metric}\non test",
        f"{metric}\nselection",
        "latency\nms",
        "share of full\nlatency",
        "size\nMiB",
        "what was done",
    )


def without_search(records: Sequence[TrialRecord], front: ParetoFront) -> list[TrialRecord]:
    """The uncompressed model, and the model at each of the runtime's own precisions, as far as they were measured."""
    baseline = [] if front.baseline is None else [front.baseline]
    return baseline + [record for record in records if record.origin == WHOLE_MODEL and record.is_point]


def _share(value: float) -> float:
    """For sorting: what has no latency goes first."""
    return value if is_number(value) else math.inf


def _peer_cells(peer: Peer, metric: str) -> list[str]:
    return [
        "peer",
        metric_text(peer.metrics.get("test", {}).get(metric), metric),
        metric_text(peer.metrics.get("selection", {}).get(metric), metric),
        f"{peer.latency.ms:.3f}",
        f"{peer.latency.ratio:.3f} ± {peer.latency.spread:.3f}",
        f"{peer.size_mib:.3f}",
        f"{peer.name}, without a search",
    ]


def _title(run: Run) -> Text:
    n_failed = sum(record.state == "failed" for record in run.records)
    failed = f" ({n_failed} failed)" if n_failed else ""
    return plain_text(f"{run.info.task}: {len(run.front.points)} on the front of {len(run.records)} trials{failed}")


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
    peer = read_peer(run.folder.peer)
    if peer is not None and run.front.points:
        lines.append(peer_text(peer, run.front))
    return plain_text("\n".join(lines))


def cells_of(record: TrialRecord, front: ParetoFront, n_layers: int = 0) -> list[str]:
    """A row of the table; each precision is shown with its share of the layers."""
    metric = front.metric
    latency = record.file.latency if record.file is not None else record.latency
    size = record.file.size_mib if record.file is not None else record.size_mib
    test = record.file.metrics.get("test", {}).get(metric) if record.file is not None else None
    timed = latency is not None and is_number(latency.ratio)
    what = candidate_text(record.candidate, n_layers)
    on_front = any(record.number == point.number for point in front.points)
    if record.origin == WHOLE_MODEL:
        what = f"{what}, without training{', on the front' if on_front else ''}"
    elif record.candidate.is_baseline and on_front:
        what = f"{what}, on the front"
    return [
        str(record.number),
        metric_text(test, metric),
        metric_text(score(record, metric), metric),
        f"{latency.ms:.3f}" if latency is not None and is_number(latency.ms) else NOTHING,
        f"{latency.ratio:.3f} ± {latency.spread:.3f}" if latency is not None and timed else NOTHING,
        f"{size:.3f}" if is_number(size) else NOTHING,
        what,
    ]
