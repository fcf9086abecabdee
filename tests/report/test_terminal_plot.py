"""The picture of characters: each point where its figures say."""

from __future__ import annotations

import re

from autocompress.report.terminal_plot import FRONT, GIVEN, front_plot
from autocompress.results.objectives import ratio, score
from autocompress.space.candidate import Candidate
from tests.report.conftest import MakeRun
from tests.report.searches import LAYERS, complete


def marks_of(text: str) -> list[tuple[int, int, str]]:
    """Column and line of each mark, from the top left of the frame."""
    lines = [line.split("|", 1)[1] for line in text.splitlines() if "|" in line]
    return [(column, i, mark) for i, line in enumerate(lines) for column, mark in enumerate(line) if mark != " "]


def test_points_stand_where_their_figures_say(make_run: MakeRun) -> None:
    run = make_run(budget=None)
    text = front_plot(run, width=101, height=21)
    shown = [point for point in run.front.points if not point.candidate.is_baseline]
    baseline = run.front.baseline
    assert baseline is not None
    all_points = [*shown, baseline]
    right = max(map(ratio, all_points))
    values = [score(point, "accuracy") for point in all_points]
    expected = {
        (round(100 * ratio(point) / right), round(20 * (max(values) - value) / (max(values) - min(values))))
        for point, value in zip(all_points, values, strict=True)
    }
    assert {(column, line) for column, line, _ in marks_of(text)} == expected
    assert text.count("\n") == 23 and f"{right:.2f}" in text.splitlines()[-1]
    assert f"{100 * max(values):.2f}%" in text.splitlines()[1] and f"{100 * min(values):.2f}%" in text


def test_what_there_is_without_a_search_has_its_own_mark_under_the_fronts(make_run: MakeRun) -> None:
    pruned = Candidate(prune_ratio={LAYERS[1]: 0.5})
    text = front_plot(make_run([complete(0, Candidate(), 1.0, 0.92, "baseline"), complete(1, pruned, 0.3, 0.9)]))
    assert sorted(mark for _, _, mark in marks_of(text)) == sorted([FRONT, GIVEN])
    assert re.search(r"accuracy, selection: o the front, x without a search", text)


def test_one_point_makes_no_picture(make_run: MakeRun) -> None:
    assert front_plot(make_run([complete(0, Candidate(), 1.0, 0.92, "baseline")])) == ""
