"""The front as a picture of characters, for a terminal."""

from __future__ import annotations

from autocompress.report.table import without_search
from autocompress.report.wording import is_number, metric_text, plain_text
from autocompress.results.objectives import ratio, score
from autocompress.results.peer import read_peer
from autocompress.results.run_folder import Run

FRONT, GIVEN = "o", "x"
_LABEL = 9  # characters to the left of the frame

Point = tuple[float, float, str]


def front_plot(run: Run, width: int = 64, height: int = 14) -> str:
    """Latency to the right, the metric upwards: the front, and what there is without a search.

    Args:
        run: with its front.
        width: of the frame, characters.
        height: of the frame, lines.

    Returns:
        Lines; empty where fewer than two points have both figures.
    """
    metric = run.info.objectives.metric
    points = _points(run, metric)
    if len(points) < 2:
        return ""
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    right, low, high = max(xs), min(ys), max(ys)
    cells = [[" "] * width for _ in range(height)]
    for x, y, mark in sorted(points, key=lambda point: point[2] == FRONT):  # the front's marks on top
        column = round(x / max(right, 1e-12) * (width - 1))
        line = round((high - y) / max(high - low, 1e-12) * (height - 1))
        cells[line][column] = mark
    labels = {0: metric_text(high, metric), height - 1: metric_text(low, metric)}
    lines = [f"{labels.get(i, ''):>{_LABEL - 1}} |{''.join(row).rstrip()}" for i, row in enumerate(cells)]
    end = f"{right:.2f}"
    return "\n".join(
        [
            f"{plain_text(metric)}, selection: {FRONT} the front, {GIVEN} without a search",
            *lines,
            " " * _LABEL + "+" + "-" * width,
            " " * _LABEL + "0" + "share of the full latency".center(width - len(end)) + end,
        ]
    )


def _points(run: Run, metric: str) -> list[Point]:
    given = without_search(run.records, run.front)
    numbers = {record.number for record in given}
    marked = [(record, GIVEN) for record in given]
    marked += [(record, FRONT) for record in run.front.points if record.number not in numbers]
    points = [(ratio(record), score(record, metric), mark) for record, mark in marked]
    peer = read_peer(run.folder.peer)
    if peer is not None:
        value = peer.metrics.get("selection", {}).get(metric, float("nan"))
        points.append((peer.latency.ratio, value, GIVEN))
    return [point for point in points if is_number(point[0]) and is_number(point[1])]
