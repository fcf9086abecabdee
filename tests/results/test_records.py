"""Records: round trips through JSON lines, damaged files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from autocompress.errors import InputError
from autocompress.results.records import (
    FileNumbers,
    Latency,
    Rung,
    TrialRecord,
    append_record,
    read_records,
    write_records,
)
from autocompress.space.candidate import Candidate

LATENCY = Latency(0.5, 0.01, 1.5, 9)
RECORD = TrialRecord(
    number=7,
    state="complete",
    origin="uniform",
    candidate=Candidate(prune_ratio={"conv": 0.5}, rank_ratio={"fc": 0.25}, drop=frozenset({"block"})),
    metrics={"accuracy": 0.9},
    latency=LATENCY,
    feasible=True,
    rungs=(Rung(0, {"accuracy": 0.1}), Rung(20, {"accuracy": 0.9})),
    seconds={"compress": 1.0},
    size_mib=0.25,
    file=FileNumbers({"test": {"accuracy": 0.8}}, {"test": 100}, LATENCY, 0.2, 0.01, 0.99),
)


def test_round_trip_of_complete_and_failed_records(tmp_path: Path) -> None:
    failed = TrialRecord(8, "failed", "sampler", Candidate(), error="Traceback ...")
    file = tmp_path / "trials.jsonl"
    write_records(file, [RECORD])
    append_record(file, failed)
    first, second = read_records(file)
    assert first == RECORD
    assert first.name == "trial_0007"
    assert second.error == "Traceback ..."
    assert math.isnan(second.size_mib)


def test_a_cut_off_last_line_is_skipped_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "trials.jsonl"
    write_records(file, [RECORD, RECORD])
    text = file.read_text()
    file.write_text(text[:-30])
    with pytest.warns(UserWarning, match="cut off"):
        assert read_records(file) == [RECORD]
    file.write_text("{broken\n" + text)
    with pytest.raises(InputError, match="line 1 is not JSON"):
        read_records(file)
    with pytest.raises(InputError, match="does not exist"):
        read_records(tmp_path / "nothing.jsonl")


def test_another_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="schema 1 can be read, but got 99"):
        TrialRecord.from_dict({**RECORD.to_dict(), "schema": 99})
    with pytest.raises(InputError, match="damaged"):
        TrialRecord.from_dict({**RECORD.to_dict(), "surprise": 1})
