"""A run goes on from a study that has all its trials, from one made again when asked, and from nothing less."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.config import SearchSettings
from autocompress.errors import InputError
from autocompress.execution.open_run import study_of
from autocompress.execution.reopened_study import reopened_study
from autocompress.report.files import write_front_table
from autocompress.results.records import Latency, TrialRecord, numbers_in, read_records, write_records
from autocompress.results.run_folder import RunFolder, RunInfo
from autocompress.sampling.study import REFINED
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Knob, SearchSpace
from tests.shared.objectives import of_accuracy

SPACE = SearchSpace((Knob("weight_bits", "fc", (32, 8)), Knob("prune_ratio", "conv", (0.0, 0.25, 0.5, 0.75))))
N_TRIALS = 6


def record_of(number: int, candidate: Candidate, **more: object) -> TrialRecord:
    latency = Latency(0.9 - number / 20, 0.01, 1.0, 9)
    record = TrialRecord(number, "complete", "sampler", candidate, {"accuracy": 0.9 - number / 50}, latency, True)
    return replace(record, size_mib=0.25, **more)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Six trials of a search, one of them refined, one failed, and a number that was given out and never told."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_info(info_of())
    study = study_of(folder, SPACE, info_of())
    study.add(record_of(0, Candidate()))
    for _ in range(3):
        asked = study.ask()
        assert asked is not None
        study.tell(record_of(asked.number, asked.candidate))
    failed = study.ask()
    assert failed is not None and study.ask() is not None
    study.tell(TrialRecord(failed.number, "failed", "sampler", failed.candidate, error="reason", size_mib=0.0))
    refined = study.records()[1]
    study.add_refined(replace(refined, number=study.next_number, origin=REFINED))
    write_records(folder.records, study.records())
    write_front_table(folder.read())
    assert len(study.records()) == N_TRIALS
    return folder


def info_of() -> RunInfo:
    settings = SearchSettings(sampler="random", n_trials=8)
    return RunInfo("task", None, settings, of_accuracy(), "0" * 12, SPACE.digest)


def reopened(run: RunFolder, rebuild: bool = False) -> list[TrialRecord]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # half a line at the end is dropped with a warning
        return reopened_study(run, SPACE, info_of(), rebuild=rebuild).records()


def content(run: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.iterdir() if path.suffix != ".journal"}


def removed(run: RunFolder) -> None:
    run.study.unlink()


def emptied(run: RunFolder) -> None:
    run.study.write_bytes(b"")


def a_folder(run: RunFolder) -> None:
    run.study.unlink()
    run.study.mkdir()


def cut(share: float) -> Callable[[RunFolder], None]:
    def cut_at(run: RunFolder) -> None:
        whole = run.study.read_bytes()
        run.study.write_bytes(whole[: int(share * len(whole))])

    return cut_at


def without_a_line(place: int) -> Callable[[RunFolder], None]:
    def drop(run: RunFolder) -> None:
        lines = run.study.read_bytes().splitlines(keepends=True)
        del lines[place]
        run.study.write_bytes(b"".join(lines))

    return drop


def no_json(run: RunFolder) -> None:
    run.study.write_bytes(run.study.read_bytes().replace(b'"state"', b"\x00", 3))


def another_text(run: RunFolder) -> None:
    run.study.write_text("[]\n{}\n3\n")


DAMAGES = [
    removed,
    emptied,
    a_folder,
    cut(0.02),
    cut(0.3),
    cut(0.6),
    cut(0.9),
    without_a_line(0),
    no_json,
    another_text,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_the_study_lost_is_refused_and_nothing_is_overwritten(
    run: RunFolder, damage: Callable[[RunFolder], None]
) -> None:
    before = content(run)
    damage(run)
    with pytest.raises(InputError, match="--rebuild-study"):
        reopened(run)
    assert content(run) == before


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage is not a_folder])
def test_it_is_made_again_from_the_records_when_asked(run: RunFolder, damage: Callable[[RunFolder], None]) -> None:
    before = read_records(run.records)
    damage(run)
    assert reopened(run, rebuild=True) == before
    study = reopened_study(run, SPACE, info_of())
    assert study.records() == before, "and it is whole from then on"
    asked = study.ask()
    assert asked is None or asked.number > max(record.number for record in before)


def test_a_whole_study_goes_on_as_it_is_also_when_asked_to_rebuild(run: RunFolder) -> None:
    whole = run.study.read_bytes()
    assert len(reopened(run)) == len(reopened(run, rebuild=True)) == N_TRIALS
    assert run.study.read_bytes().startswith(whole)


def test_shortened_together_with_the_records_it_is_still_noticed(run: RunFolder) -> None:
    cut(0.6)(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        left = study_of(run, SPACE, info_of()).records()
    assert 0 < len(left) < N_TRIALS
    write_records(run.records, left)
    with pytest.raises(InputError, match=f"was made of {N_TRIALS}"):
        reopened(run)


def test_without_study_and_records_there_is_nothing_to_rebuild_from(run: RunFolder) -> None:
    run.study.unlink()
    run.records.unlink()
    with pytest.raises(InputError, match="is missing too"):
        reopened(run, rebuild=True)


def test_records_that_are_damaged_or_gone_are_no_harm_where_the_study_is_whole(run: RunFolder) -> None:
    lines = run.records.read_text().splitlines()
    for text in ("", "\n".join([*lines, *lines]), "{broken\n" + "\n".join(lines), lines[0]):
        run.records.write_text(text)
        assert len(reopened(run)) == N_TRIALS


def test_numbers_are_read_from_whatever_is_left_of_the_records(tmp_path: Path) -> None:
    rng = random.Random(0)
    file = tmp_path / "trials.jsonl"
    lines = [f'{{"number": {i}, "rest": "{"x" * rng.randrange(30)}"}}' for i in range(8)]
    file.write_bytes("\n".join([*lines[:4], "{half", "[]", '{"number": "9"}', *lines[4:]]).encode() + b"\n\xff\xfe")
    assert numbers_in(file) == set(range(8))
    assert numbers_in(tmp_path / "nothing") == set()


def test_fewer_results_do_not_replace_more(run: RunFolder) -> None:
    table = run.table_json.read_bytes()
    run.records.write_text("\n".join(run.records.read_text().splitlines()[:3]))
    with pytest.raises(InputError, match="has 3 trials, but front.json was made of 6"):
        write_front_table(run.read())
    assert run.table_json.read_bytes() == table
    run.table_json.unlink()
    write_front_table(run.read())
