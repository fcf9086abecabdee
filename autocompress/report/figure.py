"""The front as a picture for a paper: SVG, or PNG where pillow is installed. Light, and readable in grey."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from autocompress.errors import InputError, MissingExtraError
from autocompress.report.wording import is_number, is_share, reason_text
from autocompress.results.objectives import Objectives, ratio, score
from autocompress.results.pareto import ParetoFront
from autocompress.results.records import TrialRecord
from autocompress.results.run_folder import Run

Point = tuple[float, float]
Placed = tuple[TrialRecord, float, float]
"""A record, its latency ratio and its metric."""

WIDTH, HEIGHT = 720, 460
LEFT, RIGHT, TOP, BOTTOM = 70, WIDTH - 20, 24, HEIGHT - 56
INK, QUIET, LINE, FRONT, BUDGET = "#1a1f26", "#6f7a86", "#d8dee6", "#0072b2", "#a8326f"
_PNG_SCALE, _SMOOTH = 2, 2


class Canvas(Protocol):
    """What a figure is drawn on; positions in points from the top left."""

    def line(self, points: Sequence[Point], color: str, width: float) -> None:
        """An open line through the points."""

    def shape(self, points: Sequence[Point], fill: str | None, color: str) -> None:
        """A closed shape."""

    def text(self, at: Point, text: str, color: str, anchor: str) -> None:
        """A line of text on its baseline; `anchor` is start, middle or end."""


class SvgCanvas:
    """Collects elements of an SVG file."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def line(self, points: Sequence[Point], color: str, width: float) -> None:
        """See `Canvas`."""
        self._parts.append(
            f'<polyline points="{_places(points)}" fill="none" stroke="{color}" stroke-width="{width}"/>'
        )

    def shape(self, points: Sequence[Point], fill: str | None, color: str) -> None:
        """See `Canvas`."""
        self._parts.append(f'<polygon points="{_places(points)}" fill="{fill or "none"}" stroke="{color}"/>')

    def text(self, at: Point, text: str, color: str, anchor: str) -> None:
        """See `Canvas`."""
        place = f'x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}" fill="{color}"'
        self._parts.append(f"<text {place}>{html.escape(text)}</text>")

    def write(self, file: Path) -> None:
        """The whole file."""
        file.write_text(self.svg(), encoding="utf-8")

    def svg(self) -> str:
        """What was drawn, as an SVG element."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        ground = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
        return "\n".join([f'{head} font-size="13" stroke-width="1.2">', ground, *self._parts, "</svg>\n"])


class PngCanvas:
    """Draws with pillow, larger than the file, so that edges are smooth."""

    def __init__(self) -> None:
        try:
            from PIL import Image, ImageDraw, ImageFont
        except ImportError as error:
            raise MissingExtraError(
                "a PNG needs pillow: `pip install autocompress[report]`, or write an .svg, which needs nothing"
            ) from error
        self._scale = _PNG_SCALE * _SMOOTH
        self._image: Any = Image.new("RGB", (WIDTH * self._scale, HEIGHT * self._scale), "white")
        self._draw: Any = ImageDraw.Draw(self._image)
        self._font: Any = ImageFont.load_default(13 * self._scale)

    def line(self, points: Sequence[Point], color: str, width: float) -> None:
        """See `Canvas`."""
        self._draw.line(self._scaled(points), fill=color, width=round(width * self._scale), joint="curve")

    def shape(self, points: Sequence[Point], fill: str | None, color: str) -> None:
        """See `Canvas`."""
        self._draw.polygon(self._scaled(points), fill=fill, outline=color, width=round(1.2 * self._scale))

    def text(self, at: Point, text: str, color: str, anchor: str) -> None:
        """See `Canvas`."""
        side = {"start": "l", "middle": "m", "end": "r"}[anchor]
        self._draw.text(self._scaled([at])[0], text, fill=color, font=self._font, anchor=f"{side}s")

    def write(self, file: Path) -> None:
        """The whole file."""
        self._image.reduce(_SMOOTH).save(file, optimize=True)

    def _scaled(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self._scale, y * self._scale) for x, y in points]


CANVASES: dict[str, Callable[[], SvgCanvas | PngCanvas]] = {".svg": SvgCanvas, ".png": PngCanvas}


def write_figure(run: Run, file: Path) -> None:
    """Draws the front, the trials behind it, the uncompressed model and the budget.

    Raises:
        InputError: the file is neither .svg nor .png, or there is nothing to draw.
        MissingExtraError: a PNG without pillow.
    """
    if file.suffix.lower() not in CANVASES:
        raise InputError(f"a figure is an .svg or a .png file, but got {file.name!r}")
    shown = placed(run.records, run.front.metric)
    if not shown:
        raise InputError("no trial has both a latency and a score yet, so there is nothing to draw")
    canvas = CANVASES[file.suffix.lower()]()
    _draw(canvas, run.front, shown)
    canvas.write(file)


def front_svg(front: ParetoFront) -> str | None:
    """The front, the uncompressed model and the budget as an SVG element; None where there is nothing to draw."""
    baseline = [] if front.baseline is None else [front.baseline]
    records = {record.number: record for record in (*baseline, *front.points)}
    shown = placed(records.values(), front.metric)
    if not shown:
        return None
    canvas = SvgCanvas()
    _draw(canvas, front, shown)
    return canvas.svg()


def placed(records: Iterable[TrialRecord], metric: str) -> list[Placed]:
    """Records that have a place in the picture, each with its latency ratio and its metric."""
    found = [(r, ratio(r), score(r, metric)) for r in records]
    return [(r, x, y) for r, x, y in found if r.is_point and is_number(x) and is_number(y)]


def _draw(canvas: Canvas, pareto: ParetoFront, shown: Sequence[Placed]) -> None:
    objectives, front = pareto.objectives, {point.number for point in pareto.points}
    best = [(x, y) for r, x, y in shown if r.number in front or r.candidate.is_baseline] or [
        (x, y) for _, x, y in shown
    ]
    xs = [x for x, _ in best] + ([objectives.budget] if objectives.budget is not None else [])
    across = _Scale(xs, LEFT, RIGHT)
    low = min(y for _, y in best)
    room = 1.2 * max(max(y for _, y in best) - low, 0.01 * abs(low))
    up = _Scale([y for _, y in best] + [max(low - room, min(y for _, _, y in shown))], BOTTOM, TOP)
    _axes(canvas, across, up, objectives.metric)
    if objectives.budget is not None:
        at = across(objectives.budget)
        canvas.line([(at, TOP), (at, BOTTOM)], BUDGET, 1.2)
        canvas.text((at + 5, BOTTOM - 8), "budget", BUDGET, "start")
    line = sorted((across(x), up(y)) for r, x, y in shown if r.number in front)
    canvas.line(line, FRONT, 2)
    for record, x, y in sorted(shown, key=lambda item: item[0].number in front):
        if across.holds(x) and up.holds(y):
            _mark(canvas, (across(x), up(y)), _kind(record, front, objectives))
    for i, (kind, text) in enumerate(_LEGEND.items()):
        _mark(canvas, (LEFT + 10 + 165 * i, HEIGHT - 12), kind)
        canvas.text((LEFT + 22 + 165 * i, HEIGHT - 8), text, INK, "start")


_LEGEND = {
    "front": "front",
    "baseline": "uncompressed",
    "trial": "other trial",
    "outside": "outside the limits",
}


def _kind(record: TrialRecord, front: set[int], objectives: Objectives) -> str:
    if record.number in front:
        return "front"
    if record.candidate.is_baseline:
        return "baseline"
    outside = reason_text(record, objectives) is not None
    return "outside" if outside else "trial"


def _mark(canvas: Canvas, at: Point, kind: str) -> None:
    x, y = at
    if kind == "front":
        canvas.shape([(x, y - 7), (x + 7, y), (x, y + 7), (x - 7, y)], FRONT, "#ffffff")
    elif kind == "baseline":
        canvas.shape([(x - 5, y - 5), (x + 5, y - 5), (x + 5, y + 5), (x - 5, y + 5)], INK, "#ffffff")
    elif kind == "trial":
        angles = [2 * math.pi * i / 20 for i in range(20)]
        canvas.shape([(x + 3.5 * math.cos(turn), y + 3.5 * math.sin(turn)) for turn in angles], None, QUIET)
    else:
        canvas.line([(x - 3, y - 3), (x + 3, y + 3)], QUIET, 1.2)
        canvas.line([(x - 3, y + 3), (x + 3, y - 3)], QUIET, 1.2)


class _Scale:
    """A linear scale over the values, with room at both ends and round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        room = 0.08 * ((high - low) or abs(high) or 1.0)
        self._low, self._high, self._start, self._end = low - room, high + room, start, end
        raw = (self._high - self._low) / 6
        power = 10.0 ** math.floor(math.log10(raw))
        self.step = next(size * power for size in (1, 2, 5, 10) if size * power >= raw)
        first = math.ceil(self._low / self.step)
        self.ticks = [i * self.step for i in range(first, math.floor(self._high / self.step) + 1)]

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) / (self._high - self._low) * (self._end - self._start)

    def holds(self, value: float) -> bool:
        return self._low <= value <= self._high


def _axes(canvas: Canvas, across: _Scale, up: _Scale, metric: str) -> None:
    for tick in across.ticks:
        canvas.line([(across(tick), TOP), (across(tick), BOTTOM)], LINE, 1)
        canvas.text((across(tick), BOTTOM + 16), f"{_digits(tick, across.step)}x", INK, "middle")
    for tick in up.ticks:
        canvas.line([(LEFT, up(tick)), (RIGHT, up(tick))], LINE, 1)
        text = f"{_digits(100 * tick, 100 * up.step)}%" if is_share(metric) else _digits(tick, up.step)
        canvas.text((LEFT - 6, up(tick) + 4), text, INK, "end")
    canvas.text((RIGHT, BOTTOM + 33), "latency, share of the uncompressed model", INK, "end")
    canvas.text((LEFT, TOP - 9), metric, INK, "start")


def _digits(value: float, step: float) -> str:
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _places(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
