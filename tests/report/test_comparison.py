"""Two points side by side in a terminal."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.table import Table

from autocompress.errors import InputError
from autocompress.report.comparison import comparison
from autocompress.results.run_folder import Run
from autocompress.space.candidate import Candidate
from tests.report.conftest import MakeRun
from tests.report.searches import LAYERS, complete


def text(run: Run, *numbers: int) -> str:
    console = Console(width=160, no_color=True)
    with console.capture() as capture:
        for table in comparison(run, numbers):
            assert isinstance(table, Table)
            console.print(table)
    return capture.get()


def test_figures_and_the_layers_that_differ(make_run: MakeRun) -> None:
    pruned = Candidate({LAYERS[1]: 0.5}, weight_bits={LAYERS[1]: 8, "linear": 8})
    other = Candidate(rank_ratio={LAYERS[2]: "spatial:0.5"}, weight_bits={"linear": 8})
    shown = text(
        make_run([complete(0, Candidate(), 1.0, 0.92), complete(1, pruned, 0.5, 0.9), complete(2, other, 0.4, 0.8)]),
        1,
        2,
    )
    lines = {line.split("  ")[0].strip(): line for line in shown.splitlines()}
    assert "89.60%" in lines["accuracy, test (file)"] and "79.60%" in lines["accuracy, test (file)"]
    assert "50% channels off, 8-bit" in lines[LAYERS[1]] and "as it was" in lines[LAYERS[1]]
    assert "rank spatial:0.5" in lines[LAYERS[2]]
    assert "linear" not in lines and LAYERS[3] not in lines, "these are alike"


def test_names_are_not_markup(make_run: MakeRun) -> None:
    run = make_run([complete(0, Candidate(), 1.0, 0.9), complete(1, Candidate({"[red]x": 0.5}), 0.5, 0.8)], ["[red]x"])
    assert "[red]x" in text(run, 0, 1)


def test_a_trial_that_is_not_there(make_run: MakeRun) -> None:
    with pytest.raises(InputError, match="has the trials 0 to 31, but got 99"):
        text(make_run(), 0, 99)
