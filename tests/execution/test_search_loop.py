"""What ends a search: all trials failed alike; what is kept of a command line; what a run's start leaves behind."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from autocompress.config import SearchSettings
from autocompress.errors import InputError, MeasurementError
from autocompress.execution import search_loop
from autocompress.execution.preparation import _command
from autocompress.execution.search_ends import refuse_all_failed, stopped_by
from autocompress.execution.search_loop import start
from autocompress.results.records import WHOLE_MODEL, TrialRecord
from autocompress.results.run_folder import RunFolder
from autocompress.space.candidate import Candidate
from tests.shared.tasks import tiny_task


def record(number: int, state: str = "failed", origin: str = "sampler", error: str | None = None) -> TrialRecord:
    return TrialRecord(number, state, origin, Candidate(), error=error)  # type: ignore[arg-type]  # of these states


def test_a_search_whose_trials_all_failed_says_why() -> None:
    baseline, whole = record(0, "complete", "baseline"), record(1, "complete", WHOLE_MODEL)
    failed = [record(i, error=f"Traceback\n  line\nValueError: no label {'x' if i > 2 else 'y'}") for i in range(2, 6)]
    with pytest.raises(MeasurementError, match="all 4 trials failed, 3 of them with: ValueError: no label x"):
        refuse_all_failed([baseline, whole, *failed])
    refuse_all_failed([baseline, whole, *failed, record(9, "stopped")])
    refuse_all_failed([baseline, whole])
    with pytest.raises(MeasurementError, match="no reason"):
        refuse_all_failed([record(3)])


def test_a_stopped_search_says_how_to_go_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "my run")
    said = stopped_by(signal.SIGINT, folder, SearchSettings(n_trials=30), 7)
    assert (str(said), said.number) == (
        f"stopped by SIGINT after 7 of 30 trials; `autocompress resume '{tmp_path}/my run'` continues it", 2
    )  # fmt: skip
    timed = SearchSettings.from_dict({"minutes": 2.5})
    assert "after 7 trials; " in str(stopped_by(signal.SIGTERM, folder, timed, 7))
    assert "--minutes 2.5` continues it" in str(stopped_by(signal.SIGTERM, folder, timed, 7))


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("/usr/bin/autocompress", "autocompress search 'my model.py:task'"),
        ("/lib/autocompress/__main__.py", "autocompress search 'my model.py:task'"),
        ("/home/me/train.py", "train.py"),
        ("/home/me/__main__.py", "__main__.py"),
        ("-c", "-c"),
    ],
)
def test_arguments_of_ones_own_script_are_not_kept(
    program: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "search", "my model.py:task"])
    assert _command() == expected


@pytest.mark.parametrize("place", ["file/run", "dangling", "exists", "x" * 300])
def test_a_folder_that_cannot_be_made_is_known_before_any_work(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: object) -> None:
        raise AssertionError("the long work has begun")

    monkeypatch.setattr(search_loop, "prepare", prepare)
    (tmp_path / "file").touch()
    (tmp_path / "exists").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="must be a|new folder"):
        start(tiny_task(), "default", SearchSettings(), tmp_path / place, None, None)
    assert sorted(tmp_path.rglob("*")) == before
