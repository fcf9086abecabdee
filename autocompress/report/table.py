"""The front as a table for a terminal."""

from __future__ import annotations

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
from autocompress.results.objectives import score
from autocompress.results.peer import Peer, peer_text, read_peer
from autocompress.results.records import TrialRecord
from autocompress.results.run_folder import Run


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
        table.add_column(plain_text(head), justify="right", no_wrap=True)
    table.add_column("what was done")
    baseline = run.front.baseline
    if baseline is not None:
        table.add_row(*_cells(baseline, run), style="dim")
    peer = read_peer(run.folder.peer)
    if peer is not None:
        table.add_row(*_peer_cells(peer, run), style="dim")
    for point in run.front.points:
        if not point.candidate.is_baseline:
            table.add_row(*_cells(point, run))
    return table


def _peer_cells(peer: Peer, run: Run) -> list[Text]:
    metric = run.info.objectives.metric
    cells = [
        "peer",
        metric_text(peer.metrics.get("test", {}).get(metric), metric),
        metric_text(peer.metrics.get("selection", {}).get(metric), metric),
        f"{peer.latency.ms:.3f}",
        f"{peer.latency.ratio:.3f} ± {peer.latency.spread:.3f}",
        f"{peer.size_mib:.3f}",
        f"{peer.name}, without a search",
    ]
    return [Text(cell) for cell in cells]


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
    return [plain_text(cell) for cell in cells]
