"""The terminal's table as text."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from autocompress.report.table import front_table
from autocompress.results.peer import Peer
from autocompress.results.records import WHOLE_MODEL, Latency
from autocompress.results.run_folder import Run
from autocompress.space.candidate import Candidate
from tests.report.conftest import MakeRun
from tests.report.searches import LAYERS, complete, failed


def text_of(run: Run, width: int = 180) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(front_table(run))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_rows_are_the_uncompressed_model_and_the_front_fastest_first(make_run: MakeRun) -> None:
    run = make_run()
    rows = [
        line.split() for line in text_of(run).splitlines() if line.strip()[:1].isdigit()
    ]  # one line a row at this width
    assert [int(row[0]) for row in rows] == [0, *(point.number for point in run.front.points)]
    point = run.front.points[0]
    assert point.file is not None
    first = " ".join(rows[1])
    assert f"{100 * point.file.metrics['test']['accuracy']:.2f}%" in first
    assert f"{100 * point.metrics['accuracy']:.2f}%" in first
    assert f"{point.file.latency.ms:.3f}" in first
    assert f"{point.file.latency.ratio:.3f} ± 0.020" in first
    assert "low-rank" in first


def test_the_uncompressed_model_is_listed_once_when_it_is_on_the_front(make_run: MakeRun) -> None:
    run = make_run(budget=None)
    assert any(point.candidate.is_baseline for point in run.front.points)
    assert text_of(run).count("uncompressed") == text_of(run).count("uncompressed, on the front") == 1


def test_what_there_is_without_a_search_comes_first_the_slowest_first(make_run: MakeRun, tmp_path: Path) -> None:
    half, eight, refused = (
        replace(complete(number, Candidate(weight_bits=dict.fromkeys(LAYERS, bits)), share, score), origin=WHOLE_MODEL)
        for number, bits, share, score in ((1, 16, 0.9, 0.915), (2, 8, 0.4, 0.91), (3, "8w", 0.8, 0.9))
    )
    refused = replace(refused, state="failed", latency=None)
    pruned = Candidate(prune_ratio={LAYERS[1]: 0.5})
    uncompressed = complete(0, Candidate(), 1.0, 0.92, "baseline")
    run = make_run([uncompressed, half, eight, refused, complete(4, pruned, 0.3, 0.8), complete(5, pruned, 0.9, 0.7)])
    folder = tmp_path / "peer"
    folder.mkdir()
    (folder / "model.onnx").touch()
    Peer("int8 by a tool", "model.onnx", {}, Latency(0.6, 0.01, 0.4, 9), 0.5).write(folder)
    rows = [line for line in text_of(run).splitlines() if re.match(r" *(\d+|peer) ", line)]
    assert [row.split()[0] for row in rows] == ["0", "1", "peer", "2", "4"], "then the front, each trial once"
    assert "without training, on the front" in rows[3]
    assert "without training" in rows[1] and "on the front" not in rows[1]


def test_the_caption_holds_the_budget_and_the_reason(make_run: MakeRun) -> None:
    assert "latency budget 0.6x of the uncompressed model = 0.414 ms" in text_of(make_run())
    assert "no latency budget" in text_of(make_run(budget=None))
    over = make_run([complete(0, Candidate(), 1.0, 0.9), complete(1, Candidate(weight_bits={"conv1": 8}), 0.8, 0.9)])
    assert over.front.reason in " ".join(text_of(over).split())


def test_runs_without_a_front_say_so(make_run: MakeRun) -> None:
    for records in ([], [failed(0, "E: x")], [complete(0, Candidate(), 0.5, math.nan)]):
        assert "there is no front" in text_of(make_run(records))


def test_square_brackets_are_text(make_run: MakeRun) -> None:
    name = "[bold]my.py:task[/nothing]"
    assert name in text_of(make_run(task=name))


def test_it_fits_eighty_columns(make_run: MakeRun) -> None:
    assert max(map(len, text_of(make_run(), width=80).splitlines())) <= 80
