"""The live line: figures of the front so far, time left by the mean rate, nothing where it is not wanted."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import pytest
from rich.console import Console

from autocompress.execution import progress as progress_module
from autocompress.execution.progress import SearchProgress
from autocompress.results.records import Latency, TrialRecord
from autocompress.space.candidate import Candidate
from tests.shared.objectives import of_accuracy


def complete(number: int, ratio: float, accuracy: float) -> TrialRecord:
    candidate = Candidate(prune_ratio={"conv": number / 100})
    latency = Latency(ratio, 0.0, ratio, 9)
    return TrialRecord(number, "complete", "sampler", candidate, {"accuracy": accuracy}, latency, ratio <= 0.5)


def failed(number: int) -> TrialRecord:
    return TrialRecord(number, "failed", "sampler", Candidate(), error="x")


def progress_of(
    records: list[TrialRecord],
    n_trials: int = 10,
    minutes: float | None = None,
    budget: float | None = 0.5,
    console: Console | None = None,
) -> SearchProgress:
    return SearchProgress(records, n_trials, minutes, of_accuracy(budget, 1.0), console)


def test_status_says_the_best_within_the_budget_the_front_and_the_failed() -> None:
    progress = progress_of([complete(0, 1.0, 0.99)])
    assert progress.status() == "none within budget yet, front 0"
    progress.finished(complete(1, 0.4, 0.8))
    assert progress.status() == "best accuracy 0.8000 within budget, front 1"
    progress.finished(complete(2, 0.3, 0.7))
    progress.finished(complete(3, 0.35, 0.6))
    progress.finished(failed(4))
    progress.finished(complete(5, 0.5, 0.91234))
    assert progress.status() == "best accuracy 0.9123 within budget, front 3, failed 1"


def test_polishes_are_counted_apart() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=160)
    polished = replace(complete(2, 0.4, 0.85), origin="polished")
    progress = progress_of([complete(0, 1.0, 0.99), complete(1, 0.4, 0.8), polished], n_trials=2, console=console)
    assert progress.status() == "best accuracy 0.8500 within budget, front 1, polished 1"
    with progress:
        progress.finished(replace(polished, number=3, metrics={"accuracy": 0.7}))
        time.sleep(0.3)
    assert progress.status().endswith("polished 2") and "2/2" in text.getvalue()
    assert progress.seconds_left() == 0


def test_status_without_a_budget_and_without_trials() -> None:
    assert progress_of([complete(0, 1.0, 0.99)], budget=None).status() == "best accuracy 0.9900, front 1"
    assert progress_of([]).status().endswith("front 0")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress_module, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    return now


def test_time_left_is_by_the_rate_of_this_start(now: list[float]) -> None:
    progress = progress_of([complete(0, 1.0, 0.9), complete(1, 0.4, 0.9)], n_trials=10)
    now[0] += 30
    progress.finished(complete(2, 0.4, 0.8))
    progress.finished(complete(3, 0.4, 0.8))
    assert progress.seconds_left() == pytest.approx(15 * 6), "30 s for two trials, six to go"
    limited = progress_of([], n_trials=10, minutes=2)
    now[0] += 50
    limited.finished(complete(1, 0.4, 0.8))
    assert limited.seconds_left() == pytest.approx(70), "at most until the time limit"
    now[0] += 500
    assert limited.seconds_left() == 0


def test_nothing_is_left_when_all_are_done(now: list[float]) -> None:
    progress = progress_of([], n_trials=1)
    now[0] += 5
    progress.finished(complete(0, 0.4, 0.8))
    assert progress.seconds_left() == 0


def test_the_line_is_drawn_on_its_console_only(capsys: pytest.CaptureFixture[str]) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=160)
    with progress_of([complete(0, 1.0, 0.9)], n_trials=4, console=console) as progress:
        progress.finished(complete(1, 0.4, 0.8))
        time.sleep(0.3)
    assert "2/4" in text.getvalue()
    assert "best accuracy 0.8000 within budget, front 1" in text.getvalue()
    with progress_of([], console=None) as silent:
        silent.finished(complete(1, 0.4, 0.8))
    assert capsys.readouterr() == ("", "")
