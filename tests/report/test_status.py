"""`autocompress status`: what the files of a run say while another process writes them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from autocompress.cli import main
from autocompress.config import ALL_THAT_FIT, SearchSettings
from autocompress.errors import InputError
from autocompress.report.status import status_data, status_lines
from autocompress.results.records import Latency, TrialRecord, read_records, write_records
from autocompress.results.run_folder import RunFolder, RunInfo
from autocompress.space.candidate import Candidate
from tests.shared.objectives import of_accuracy

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Four of ten trials are there, a minute apart; one failed."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_info(RunInfo("digits", "digits", SearchSettings(n_trials=10), of_accuracy(0.5, 2.0), "m", "s"))
    records = [
        TrialRecord(
            i,
            "failed" if i == 2 else "complete",
            "sampler",
            Candidate(prune_ratio={"conv": i / 10}),
            {"accuracy": 0.9 + i / 100},
            Latency(0.5 - i / 10, 0.0, 1.0, 9),
            ended=60.0 * i,
        )
        for i in range(4)
    ]
    write_records(folder.records, records)
    return folder


def log(folder: RunFolder, *events: dict[str, object]) -> None:
    with folder.events.open("a") as file:
        for event in events:
            file.write(json.dumps({"time": (NOW - timedelta(seconds=65)).isoformat(), **event}) + "\n")


def test_a_run_that_nobody_drives(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_lines(folder) == [
        f"{folder.path}: digits, not running; `autocompress resume {folder.path}` continues it",
        "trials   4 of 10, 1 failed",
        "front    1 points, best accuracy 0.9300 (trial_0003)",
    ]
    assert main(["status", str(folder.path)]) == 0
    assert capsys.readouterr().out.splitlines() == status_lines(folder)
    assert main(["status", str(folder.path), "--watch"]) == 0, "ends at once: nobody drives it"


def test_a_run_in_the_middle(folder: RunFolder) -> None:
    log(
        folder,
        {"event": "started", "trial": 3},
        {"event": "complete", "trial": 3, "seconds": 60},
        {"event": "started", "trial": 4},
        {"event": "rung", "trial": 4, "steps": 20, "host": "gpu7", "pid": 99},
        {"event": "started", "trial": 5},
        {"event": "restarted", "trial": 5, "reason": "The actor died: killed"},
    )
    with folder.locked():
        lines = status_lines(folder, NOW)
    assert lines[0].startswith(f"{folder.path}: digits, searching (process ")
    assert lines[3:] == [
        "pace     60 trials an hour, about 0:06:00 left",
        "running  trial 4, after 20 steps on gpu7 (process 99), 0:01:05 ago",
        "running  trial 5, waits for a worker, 0:01:05 ago",
        "trouble  1 in all; last: trial 5 restarted, The actor died: killed",
    ]


def test_the_same_as_plain_values(folder: RunFolder) -> None:
    data = status_data(folder, NOW)
    assert (data["state"], data["driver"], data["n_trials"], data["n_failed"]) == ("stopped", None, 4, 1)
    assert data["front"]["best"]["trial"] == 3 and data["front"]["metric"] == "accuracy"
    assert data["seconds_a_trial"] == 60.0
    log(
        folder,
        {"event": "rung", "trial": 4, "steps": 20, "host": "gpu7", "pid": 99},
        {"event": "failed", "trial": 2, "reason": "E: x"},
    )
    assert status_data(folder, NOW)["running"] == [], "nobody drives it"
    with folder.locked():
        data = status_data(folder, NOW)
    assert data["state"] == "searching" and data["driver"].startswith("process ")
    assert data["running"] == [
        {"trial": 4, "event": "rung", "steps": 20, "host": "gpu7", "pid": 99, "seconds_ago": 65.0}
    ]
    assert (data["n_troubles"], data["last_trouble"]) == (1, {"trial": 2, "event": "failed", "reason": "E: x"})


def test_a_run_that_has_ended_or_measures_its_front(folder: RunFolder) -> None:
    info = folder.read_info()
    folder.write_info(replace(info, settings=replace(info.settings, n_trials=4)))
    with folder.locked():
        assert status_data(folder, NOW)["state"] == "ending"
    folder.report.touch()
    assert status_data(folder, NOW)["state"] == "done"
    assert status_lines(folder, NOW)[0].endswith(", done")


def test_a_run_without_trials(folder: RunFolder) -> None:
    write_records(folder.records, [])
    data = status_data(folder, NOW)
    assert data["front"] == {"n_points": 0, "metric": "accuracy", "best": None, "reason": "", "is_measured": False}
    assert data["seconds_a_trial"] is None and data["last_trouble"] is None


def test_polishes_are_counted_apart_from_the_trials(folder: RunFolder) -> None:
    records = read_records(folder.records)
    polished = replace(records[3], number=4, origin="polished", ended=240.0)
    write_records(folder.records, [*records, polished])
    lines = status_lines(folder, NOW)
    assert lines[1] == "trials   4 of 10, 1 trained longer, 1 failed"
    with folder.locked():
        assert "about 0:06:00 left" in status_lines(folder, NOW)[3]


def test_a_search_limited_by_minutes_has_no_number_of_trials(folder: RunFolder) -> None:
    info = folder.read_info()
    folder.write_info(replace(info, settings=replace(info.settings, n_trials=ALL_THAT_FIT, minutes=5.0)))
    with folder.locked():
        lines = status_lines(folder, NOW)
    assert lines[1] == "trials   4, 1 failed"
    assert lines[3] == "pace     60 trials an hour, as many as fit into 5 minutes"


def test_many_that_run_are_counted(folder: RunFolder) -> None:
    log(folder, *({"event": "started", "trial": i} for i in range(100)))
    with folder.locked():
        lines = status_lines(folder, NOW)
    assert lines[-1] == "         and 92 more"


def test_a_line_that_is_being_written_is_left_out(folder: RunFolder) -> None:
    log(folder, {"event": "started", "trial": 4})
    whole = folder.events.read_text()
    with folder.locked():
        expected = status_lines(folder, NOW)
        folder.events.write_text(whole + '{"time": "2026-0')
        assert status_lines(folder, NOW) == expected
    assert expected[-1] == "running  trial 4, first rung, 0:01:05 ago"
    folder.events.write_text('{"time": "2026-0\n' + whole)
    with pytest.raises(InputError, match=r"events\.jsonl, line 1 is not JSON"):
        status_lines(folder)


def test_a_second_driver_gets_the_name_of_the_first(folder: RunFolder) -> None:
    with folder.locked():
        assert folder.driver() is not None
        with (
            pytest.raises(
                InputError, match=r"is in use by another search \(process \d+ on .+\); wait for it, or stop it"
            ),
            folder.locked(),
        ):
            pass
    assert folder.driver() is None
