"""Figures for papers: each point is drawn once, where it belongs, and names are text."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from autocompress.errors import InputError, MissingExtraError
from autocompress.report.figure import BUDGET, FRONT, HEIGHT, INK, WIDTH, write_figure
from tests.report.conftest import MakeRun
from tests.report.searches import bad_searches

SVG = "{http://www.w3.org/2000/svg}"


def drawn(file: Path) -> ET.Element:
    return ET.fromstring(file.read_text(encoding="utf-8"))  # noqa: S314 - our own file


def test_the_front_the_uncompressed_model_and_the_budget_are_drawn(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    write_figure(run, tmp_path / "front.svg")
    shapes = list(drawn(tmp_path / "front.svg").iter(f"{SVG}polygon"))
    assert sum(shape.get("fill") == FRONT for shape in shapes) == len(run.front.points) + 1, "and one in the legend"
    assert sum(shape.get("fill") == INK for shape in shapes) == 2
    assert sum(line.get("stroke") == BUDGET for line in drawn(tmp_path / "front.svg").iter(f"{SVG}polyline")) == 1
    line = next(line for line in drawn(tmp_path / "front.svg").iter(f"{SVG}polyline") if line.get("stroke") == FRONT)
    places = [tuple(map(float, place.split(","))) for place in (line.get("points") or "").split()]
    assert len(places) == len(run.front.points)
    assert places == sorted(places) and [y for _, y in places] == sorted((y for _, y in places), reverse=True)


def test_a_metrics_name_is_text(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    object.__setattr__(run.info.objectives, "metric", "<b>&")
    object.__setattr__(run.front.objectives, "metric", "<b>&")
    for record in run.records:
        record.metrics["<b>&"] = record.metrics.get("accuracy", 0.1)  # type: ignore[index]
    write_figure(run, tmp_path / "front.svg")
    assert "<b>&" in [text.text for text in drawn(tmp_path / "front.svg").iter(f"{SVG}text")]


def test_png_has_the_same_shape(make_run: MakeRun, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="a PNG needs pillow")
    write_figure(make_run(), tmp_path / "front.png")
    with image.open(tmp_path / "front.png") as picture:
        assert picture.size == (2 * WIDTH, 2 * HEIGHT)
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}
    assert {tuple(bytes.fromhex(color[1:])) for color in (FRONT, INK, BUDGET)} <= colors


def test_without_pillow_a_png_is_refused_and_the_way_out_named(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"autocompress\[report\].*\.svg"):
        write_figure(make_run(), tmp_path / "front.png")


def test_another_format_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"an \.svg or a \.png file, but got 'front\.pdf'"):
        write_figure(make_run(), tmp_path / "front.pdf")


@pytest.mark.parametrize("name", bad_searches())
def test_bad_runs_are_drawn_or_refused_with_a_reason(make_run: MakeRun, tmp_path: Path, name: str) -> None:
    run = make_run(bad_searches()[name])
    if name in ("one point", "all over the budget"):
        write_figure(run, tmp_path / "front.svg")
        assert not re.search("nan|inf", (tmp_path / "front.svg").read_text())
    else:
        with pytest.raises(InputError, match="nothing to draw"):
            write_figure(run, tmp_path / "front.svg")
