"""A front in a notebook: its table and picture as HTML, and a matplotlib figure."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from autocompress.errors import InputError, MissingExtraError
from autocompress.files import printable
from autocompress.report.figure import BUDGET, FRONT, INK, Placed, front_svg, placed
from autocompress.report.table import cells_of, heads
from autocompress.report.wording import budget_text, is_share
from autocompress.results.pareto import ParetoFront

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def front_html(front: ParetoFront) -> str:
    """The picture and a table: the uncompressed model, then the points, fastest first. Names are text, nothing runs."""
    title = f"{len(front.points)} on the front, {budget_text(front.objectives)}"
    lines = [title, front.reason] if front.reason else [title]
    records = [point for point in front.points if not point.candidate.is_baseline]
    rows = [] if front.baseline is None else [cells_of(front.baseline, front)]
    rows += [cells_of(point, front) for point in records]
    parts = [f"<p>{_escaped(line)}</p>" for line in lines]
    picture = front_svg(front)
    if picture is not None:
        parts.append(f'<div style="max-width: 45em">{picture}</div>')
    if rows:
        parts.append(f"<table><thead>{_row('th', heads(front.metric))}</thead>")
        parts.append(f"<tbody>{''.join(_row('td', cells) for cells in rows)}</tbody></table>")
    return f"<div>{''.join(parts)}</div>"


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_escaped(cell)}</{tag}>' for cell in cells)}</tr>"


def _escaped(text: str) -> str:
    """As text of a page; half characters, which no file can hold, by their codes."""
    return html.escape(printable(text).encode("utf-8", "backslashreplace").decode("utf-8"))


def plot_front(front: ParetoFront, ax: Axes | None = None) -> Figure:
    """See `ParetoFront.plot`."""
    points = placed(front.points, front.metric)
    baseline = placed([] if front.baseline is None else [front.baseline], front.metric)
    if not points:
        raise InputError("no point of the front has both a latency and a metric yet, so there is nothing to draw")
    if ax is None:
        ax = _new_axes()
    _draw(ax, points, baseline, front)
    return cast("Figure", ax.figure)


def _new_axes() -> Axes:
    """Axes of a figure that pyplot forgets, so that a notebook shows it once, where it is returned."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError(
            'plot() needs matplotlib: `pip install "autocompress[plot]"`; a notebook shows the front without it, and '
            "`autocompress report RUN --figure front.svg` draws it"
        ) from error
    figure, ax = pyplot.subplots(layout="constrained")
    pyplot.close(figure)
    return ax


def _draw(ax: Axes, points: list[Placed], baseline: list[Placed], front: ParetoFront) -> None:
    scale = 100 if is_share(front.metric) else 1
    ax.plot(
        [x for _, x, _ in points],
        [scale * y for _, _, y in points],
        color=FRONT,
        marker="D",
        markeredgecolor="white",
        label="front",
    )
    for record, x, y in points:
        ax.annotate(str(record.number), (x, scale * y), (4, -12), textcoords="offset points", fontsize="small")
    for _, x, y in baseline:
        ax.plot([x], [scale * y], color=INK, marker="s", linestyle="none", label="uncompressed")
    if front.budget_ratio is not None:
        ax.axvline(front.budget_ratio, color=BUDGET, linestyle="--", label="latency budget")
    ax.set_xlabel("latency, share of the uncompressed model")
    # a dollar sign would begin a formula
    ax.set_ylabel(front.metric.replace("$", r"\$") + (", %" if scale == 100 else ""))
    ax.grid(alpha=0.3)
    ax.legend()
