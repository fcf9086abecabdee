"""A front in a notebook: each point is there, names are text, and the figure shows what the records say."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from autocompress.errors import InputError, MissingExtraError
from autocompress.report.figure import FRONT
from autocompress.results.objectives import ratio
from autocompress.results.pareto import ParetoFront, front_of
from autocompress.space.candidate import Candidate
from tests.report.conftest import MakeRun
from tests.report.searches import HOSTILE, bad_searches, complete, hostile_records
from tests.shared.objectives import of_accuracy

SVG = "{http://www.w3.org/2000/svg}"


def shown(front: ParetoFront) -> ET.Element:
    return ET.fromstring(front._repr_html_())  # noqa: S314 - our own text; it is also well-formed XML


def test_the_table_has_the_uncompressed_model_and_each_point_and_the_picture_is_there(make_run: MakeRun) -> None:
    front = make_run().front
    page = shown(front)
    body = page.find(".//tbody")
    assert body is not None
    numbers = [int(row[0].text or "") for row in body]
    assert numbers == [0, *(point.number for point in front.points)]
    shapes = list(page.iter(f"{SVG}polygon"))
    assert sum(shape.get("fill") == FRONT for shape in shapes) == len(front.points) + 1, "and one in the legend"


def test_names_are_text_and_nothing_runs() -> None:
    front = front_of(hostile_records(), of_accuracy(None))
    hostile = replace(front.objectives, metric=HOSTILE[0])
    for point in front.points:
        point.metrics[hostile.metric] = 0.5  # type: ignore[index]
    for text in (front._repr_html_(), replace(front, objectives=hostile, reason="".join(HOSTILE))._repr_html_()):
        assert "<img" not in text and "<script" not in text and "<!--" not in text
        text.encode("utf-8")


@pytest.mark.parametrize("name", bad_searches())
def test_bad_searches_are_shown_too(name: str) -> None:
    records = bad_searches()[name]
    front = front_of(records, of_accuracy(0.6))
    text = front._repr_html_()
    assert "nan" not in text
    assert front.reason[:40] in text.replace("&lt;", "<")


def test_the_figure_shows_the_points_the_uncompressed_model_and_the_budget(make_run: MakeRun) -> None:
    pytest.importorskip("matplotlib")
    front = make_run().front
    (axes,) = front.plot().axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["front"].get_xdata()) == [ratio(point) for point in front.points]
    expected = [100 * front.objectives.score_of(point) for point in front.points]
    assert list(lines["front"].get_ydata()) == pytest.approx(expected)
    assert list(lines["uncompressed"].get_xdata()) == [1.0]
    assert set(lines["latency budget"].get_xdata()) == {front.budget_ratio}
    assert {text.get_text() for text in axes.texts} == {str(point.number) for point in front.points}
    assert axes.get_ylabel() == "accuracy, %"


def test_a_figure_is_forgotten_by_pyplot_and_written_in_any_form(make_run: MakeRun, tmp_path: object) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    figure = make_run().front.plot()
    assert pyplot.get_fignums() == before
    figure.savefig(f"{tmp_path}/front.png")
    figure.savefig(f"{tmp_path}/front.pdf")


def test_it_draws_into_axes_of_the_users_own(make_run: MakeRun) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    own = figures.Figure()
    assert make_run().front.plot(own.add_subplot(1, 2, 2)) is own


def test_a_metric_that_is_no_share_and_looks_like_a_formula() -> None:
    pytest.importorskip("matplotlib")
    objectives = replace(of_accuracy(None), metric="$\\frac$")
    records = [replace(complete(0, Candidate(), 1.0, 0.9), metrics={"$\\frac$": 3.0})]
    figure = front_of(records, objectives).plot()
    assert list(figure.axes[0].get_lines()[0].get_ydata()) == [3.0]
    figure.canvas.draw()


def test_without_matplotlib_the_way_out_is_named(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"autocompress\[plot\]"):
        make_run().front.plot()


def test_a_front_without_points_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        front_of([], of_accuracy(None)).plot()


def test_a_front_is_shown_without_torch() -> None:
    code = """
import sys
from autocompress.results.pareto import front_of
from autocompress.results.objectives import Objectives
from autocompress.results.records import Latency, TrialRecord
from autocompress.space.candidate import Candidate
record = TrialRecord(0, "complete", "baseline", Candidate(), {"accuracy": 0.9}, Latency(1.0, 0.0, 1.0, 9))
assert "<svg" in front_of([record], Objectives("accuracy"))._repr_html_()
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
