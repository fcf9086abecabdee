"""Optuna's journal file for one study with one writer: what belongs together reaches the disk together, once."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Container, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from autocompress.errors import InputError, StorageError

_OPEN = {TrialState.RUNNING, TrialState.WAITING}


class StudyJournal(BaseJournalBackend):
    """Writes the format of `optuna.storages.journal.JournalFileBackend`, with which anyone may read the file.

    Optuna's own backend locks, writes, syncs and re-reads the file for each knob of each trial; with 60 knobs that is
    60 syncs a proposal. The run's lock makes us the only writer, so nothing need be read back, and the entries of one
    proposal are one write.

    Args:
        path: of the file; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        self.applied: Callable[[dict[str, Any]], None] = lambda entry: None  # told of each entry that was taken in
        self._new: list[bytes] = []  # entries since those that were in the file
        self._first: int | None = None  # number of the first of `_new`; None before the file was read
        self._pending: list[bytes] = []
        self._n_batches = 0  # open ones, one inside the other
        self._size = path.stat().st_size

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Entries made inside are written when the outermost one ends, also by an exception."""
        self._n_batches += 1
        try:
            yield
        finally:
            self._n_batches -= 1
            if not self._n_batches:
                self._write()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds entries; see `BaseJournalBackend`."""
        lines = [json.dumps(log, separators=(",", ":")).encode() for log in logs]
        self._pending += lines
        if not self._n_batches:
            self._write()
        self._new += lines

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The entries from that number on; earlier ones are never asked for again."""
        if self._first is None:
            self._first = 0
            with self._path.open("rb") as file:
                for line in file:
                    self._first += 1
                    entry = self._entry(line)
                    yield entry
                    self.applied(entry)
        del self._new[: max(0, log_number_from - self._first)]
        self._first = max(self._first, log_number_from)
        for line in list(self._new):
            entry = _decoded(line)
            yield entry
            self.applied(entry)

    def _entry(self, line: bytes) -> dict[str, Any]:
        try:
            return _decoded(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"line {self._first} is not JSON") from error

    def _write(self) -> None:
        if not self._pending:
            return
        content = b"".join(line + b"\n" for line in self._pending)
        with self._path.open("r+b") as file:  # it fails where the file is gone, and makes no new one
            end = file.seek(0, os.SEEK_END)
            if end < self._size:
                raise StorageError(
                    f"{self._path} was shortened by another program while the search wrote it; put it back, then resume"
                )
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._size = end + len(content)
        self._pending = []


class StudyStorage(JournalStorage):
    """Looks at each finished trial once: it never changes again; all trials share their distributions.

    Optuna's own goes through all trials several times a proposal, which takes most of it when there are thousands, and
    distributions of their own are most of what trials hold.

    Args:
        journal: of a single study.
        ended: called with each trial that has ended, also with those in the file; it may take out of it what is known.
    """

    def __init__(self, journal: StudyJournal, ended: Callable[[FrozenTrial], None] = lambda trial: None) -> None:
        self._all: list[FrozenTrial] = []
        self._open: set[int] = set()
        self._distributions: dict[str, BaseDistribution] = {}
        self._ended = ended
        journal.applied = self._applied
        super().__init__(journal)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See `optuna.storages.BaseStorage`; the ids of a single study's trials are 0, 1, and so on."""
        self._look()
        if states is None:
            found = list(self._all)
        elif any(state in states for state in TrialState if state not in _OPEN):
            found = [trial for trial in self._all if trial.state in states]
        else:
            found = [self._all[number] for number in sorted(self._open) if self._all[number].state in states]
        return copy.deepcopy(found) if deepcopy else found

    def _applied(self, entry: dict[str, Any]) -> None:
        """Gives a trial that has just ended the distributions of the one before it, where they are the same."""
        if "state" not in entry or not TrialState(entry["state"]).is_finished():
            return
        # one that is added with its end has no number in its entry: it is the last
        trial = self._replay_result.get_trial(entry.get("trial_id", len(self._replay_result._trials) - 1))
        if trial.distributions == self._distributions:
            trial.distributions = self._distributions
        elif trial.distributions:
            self._distributions = trial.distributions
        self._ended(trial)

    def _look(self) -> None:
        """Takes in what is new."""
        for number in self._open:
            self._all[number] = self.get_trial(number)
        while True:
            try:
                self._all.append(self.get_trial(len(self._all)))
            except KeyError:
                break
            self._open.add(len(self._all) - 1)
        self._open = {number for number in self._open if self._all[number].state in _OPEN}


def _decoded(line: bytes) -> dict[str, Any]:
    """One entry; texts are shared, as most (names of knobs, keys of records) are the same in every trial."""

    def shared(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {sys.intern(key): sys.intern(value) if type(value) is str else value for key, value in pairs}

    entry: dict[str, Any] = json.loads(line, object_pairs_hook=shared)
    return entry
