"""The study's journal: Optuna's own format, one write for what belongs together, whole entries only."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autocompress.sampling.journal import StudyJournal, StudyStorage

KNOBS = {f"knob{i}": IntDistribution(0, 3) for i in range(20)}
Open = Callable[[Path], StudyJournal | JournalFileBackend]


def searched(path: Path, backend: Open, n_trials: int = 6) -> optuna.Study:
    study = optuna.create_study(
        study_name="s",
        storage=JournalStorage(backend(path)),
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=2),
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    for _ in range(n_trials):
        trial = study.ask(KNOBS)
        trial.set_user_attr("record", {"nan": None, "list": [1, "a"]})
        trial.set_constraint("latency", trial.params["knob0"] - 1.5)
        study.tell(trial, [sum(trial.params.values()), trial.params["knob1"]])
    return study


def content(study: optuna.Study) -> list[tuple[object, ...]]:
    return [(t.number, t.state, t.params, t.values, t.user_attrs, t.constraints) for t in study.trials]


def by_optuna(path: Path) -> JournalFileBackend:
    return JournalFileBackend(str(path))


def test_it_is_what_optunas_own_backend_gives_and_reads(tmp_path: Path) -> None:
    ours, theirs = searched(tmp_path / "ours", StudyJournal), searched(tmp_path / "theirs", by_optuna)
    assert content(ours) == content(theirs)
    for reader in (by_optuna, StudyJournal):
        assert content(searched(tmp_path / "ours", reader, 0)) == content(theirs)
        assert content(searched(tmp_path / "theirs", reader, 0)) == content(theirs)
    assert len(searched(tmp_path / "ours", StudyJournal, 3).trials) == 9


def test_a_batch_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    journal = StudyJournal(tmp_path / "journal")
    study = optuna.create_study(storage=JournalStorage(journal))
    before, lines = len(synced), (tmp_path / "journal").read_bytes().count(b"\n")
    with journal.batch():
        trial = study.ask(KNOBS)
        with journal.batch():
            trial.set_user_attr("a", 1)
        assert (tmp_path / "journal").read_bytes().count(b"\n") == lines, "not yet"
    assert len(synced) == before + 1
    assert (tmp_path / "journal").read_bytes().count(b"\n") >= lines + len(KNOBS) + 1
    study.tell(trial, 1.0)
    assert len(synced) == before + 2
    assert study.trials[0].user_attrs == {"a": 1}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    journal = StudyJournal(tmp_path / "journal")
    study = optuna.create_study(storage=JournalStorage(journal))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), journal.batch():
        study.ask(KNOBS)


@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_file_that_is_gone_or_shortened_is_not_written_on(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "journal"
    journal = StudyJournal(path)
    study = optuna.create_study(storage=JournalStorage(journal))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OSError, match="No such file" if content is None else "was shortened"), journal.batch():
        study.ask(KNOBS)
    assert (path.read_bytes() if path.exists() else None) == content


def test_trials_are_listed_as_by_optunas_own_storage(tmp_path: Path) -> None:
    ours = StudyStorage(StudyJournal(tmp_path / "journal"))
    study = optuna.create_study(study_name="s", storage=ours, directions=["maximize", "minimize"])
    study.enqueue_trial(dict.fromkeys(KNOBS, 0))
    rng, running = random.Random(0), []
    for _ in range(30):
        if running and rng.random() < 0.5:
            trial = running.pop(rng.randrange(len(running)))
            values = [1.0, 2.0] if rng.random() < 0.7 else None
            study.tell(trial, values, state=None if values else TrialState.FAIL)
        else:
            running.append(study.ask(KNOBS))
        theirs = JournalStorage(by_optuna(tmp_path / "journal"))
        for states in (None, (TrialState.WAITING,), (TrialState.RUNNING,), (TrialState.COMPLETE, TrialState.WAITING)):
            listed = [store.get_all_trials(0, deepcopy=False, states=states) for store in (ours, theirs)]
            assert listed[0] == listed[1]
    copied = ours.get_all_trials(0)
    copied[0].params.clear()
    assert ours.get_all_trials(0)[0].params
