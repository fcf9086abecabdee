"""What is tried next, and what becomes of it: lost trials first, then new candidates, then polishes of front points."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from autocompress.compression.pipeline import UNCOMPRESSED, n_different
from autocompress.config import ALL_THAT_FIT
from autocompress.errors import StorageError
from autocompress.execution.abort_stopper import AbortStopper
from autocompress.execution.polish import PolishPlanner
from autocompress.execution.run_clock import RunClock
from autocompress.results.records import Latency, Predicted, Rung, State, TrialRecord, append_record
from autocompress.sampling.early_stopping import Patience
from autocompress.sampling.study import POLISHED, Asked, SearchStudy
from autocompress.space.candidate import Candidate

Listener = Callable[[TrialRecord], None]

_N_PARENTS = 1  # each costs one more compression, most of it the refit and the calibration


@dataclass(frozen=True)
class Assignment:
    """A trial that a worker is to run.

    Attributes:
        record: of the trial, as far as it is known: a failed one until a worker has reported.
        polish_steps: training steps of a polish; 0 for a trial of the exploration.
        polish_seconds: that a polish may take; None leaves its steps as they are.
        parents: names of trials whose weights may be the start.
        measured: of a polish, the record that has its latency and size.
        n_failures: how often it has lost its worker.
    """

    record: TrialRecord
    polish_steps: int = 0
    parents: tuple[str, ...] = ()
    measured: TrialRecord | None = None
    polish_seconds: float | None = None
    n_failures: int = 0

    def config(self) -> dict[str, Any]:
        """As Tune hands it to a worker: plain values."""
        measured = None
        if self.measured is not None and self.measured.latency is not None:
            known = {"latency": asdict(self.measured.latency), "size_mib": self.measured.size_mib}
            measured = json.dumps(known)
        return {
            "number": self.record.number,
            "name": self.record.name,
            "candidate": self.record.candidate.to_json(),
            "polish_steps": self.polish_steps,
            "polish_seconds": self.polish_seconds,
            "parents": list(self.parents),
            "measured": measured,
            "n_failures": self.n_failures,
        }


@dataclass(frozen=True)
class Limits:
    """What ends a search, besides its space.

    Attributes:
        clock: of this start.
        n_trials: new candidates that may be asked for.
        patience: ends the exploration when nothing is gained any more; None never does.
        inherits: whether trials may start from the weights of trained ones.
    """

    clock: RunClock
    n_trials: int = ALL_THAT_FIT
    patience: Patience | None = None
    inherits: bool = True


@dataclass
class TrialQueue:
    """Gives trials out and takes their results; each is recorded in the study on disk.

    Attributes:
        study: asked and told.
        records_file: `trials.jsonl`, to which each ended trial is added.
        limits: of this start.
        stop: after a reason to stop nothing is asked or told any more.
        polish: names the front points to train further; None polishes none.
        predicted: what is expected of a candidate's latency, or None.
        run_seconds: since the run's first start.
        listener: called with each ended trial.
        seconds: spent on asking and telling.
    """

    study: SearchStudy
    records_file: Path
    limits: Limits
    stop: AbortStopper
    polish: PolishPlanner | None = None
    predicted: Callable[[Candidate], Predicted | None] = lambda candidate: None
    run_seconds: Callable[[], float] = time.monotonic
    listener: Listener = lambda record: None
    seconds: float = 0.0
    _lost: deque[Assignment] = field(default_factory=deque)
    _polishing: dict[int, Assignment] = field(default_factory=dict)
    _n_asked: int = 0
    _is_exhausted: bool = False

    def next(self) -> Assignment | None:
        """The next trial; None when there is none now."""
        begin = time.perf_counter()
        try:
            if self.stop.reason is not None or not self.limits.clock.trains:
                return None
            if self._lost:
                return self._lost.popleft()
            found = self._cut_off_polish()
            if found is None and self.explores:
                found = self._new_candidate()
            if found is None:
                found = self._next_polish()
            if found is None and self._may_explore and not self._polishing and self._has_time_for_one:
                found = self._new_candidate()  # there is nothing to polish, and time is left
            return found
        finally:
            self.seconds += time.perf_counter() - begin

    def give_back(self, assignment: Assignment, n_failures: int) -> None:
        """Takes a trial back whose worker was lost, to be given out again before new ones."""
        self._lost.append(replace(assignment, n_failures=n_failures))

    def ended(self, assignment: Assignment, state: State, outcome: str) -> None:
        """Tells the study what a worker reported, as JSON; a failed trial where that makes no sense."""
        asked = assignment.record
        try:
            record = _with_outcome(asked, state, json.loads(outcome))
            if assignment.measured is not None:
                record = replace(record, latency=assignment.measured.latency)
            self._tell(self.study.judged(record))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._tell(replace(asked, error=f"the worker's report makes no sense ({error}): {outcome[:200]}"))

    def failed(self, assignment: Assignment, reason: str) -> None:
        """Tells the study that a trial failed."""
        self._tell(replace(assignment.record, error=reason))

    @property
    def explores(self) -> bool:
        """Whether it is the time for new candidates."""
        return self._may_explore and self.limits.clock.explores

    @property
    def _may_explore(self) -> bool:
        """Whether there may be new candidates, whatever the time."""
        patience = self.limits.patience
        impatient = patience is not None and patience.over
        return not (self._is_exhausted or impatient or self._n_asked >= self.limits.n_trials)

    @property
    def _has_time_for_one(self) -> bool:
        """Whether a new candidate could end, by the median of those that did."""
        left = self.limits.clock.training_left
        ended = [item for item in self.study.records() if item.origin != POLISHED and item.ended > item.started]
        return left is None or not ended or left >= median(item.ended - item.started for item in ended)

    def _cut_off_polish(self) -> Assignment | None:
        asked = self.study.ask_cut_off()
        return None if asked is None else self._polish_assignment(asked, self.limits.clock.training_left)

    def _new_candidate(self) -> Assignment | None:
        """A new trial of the exploration, or one that an earlier start of the run left unfinished."""
        asked = None
        with self.stop.abort_on_full_disk():
            asked = self.study.ask()
        if asked is None:
            self._is_exhausted = True  # asking again would only fill the study with repeats
            return None
        record = TrialRecord(
            asked.number, "failed", asked.origin, asked.candidate, started=self.run_seconds(),
            predicted=self.predicted(asked.candidate),
        )  # fmt: skip
        self._n_asked += 1
        return Assignment(record, parents=self._parents_of(record))

    def _next_polish(self) -> Assignment | None:
        if self.polish is None or self.explores:
            return None
        records = self.study.records()
        found = self.polish.next(records, [assignment.record for assignment in self._polishing.values()])
        if found is None:
            return None
        notes = {"origin": found.origin.number, "steps": found.steps}
        asked = None
        with self.stop.abort_on_full_disk():
            asked = self.study.ask_polish(found.origin.candidate, notes)
        return None if asked is None else self._polish_assignment(asked, found.seconds)

    def _polish_assignment(self, asked: Asked, seconds: float | None) -> Assignment:
        notes = asked.polish
        assert notes is not None, "the study says of a polish what it is"
        record = TrialRecord(asked.number, "failed", POLISHED, asked.candidate, started=self.run_seconds())
        origin = next(item for item in self.study.records() if item.number == notes["origin"])
        parents = (origin.name, *self._parents_of(record))
        assignment = Assignment(record, notes["steps"], parents, origin, seconds)
        self._polishing[record.number] = assignment
        return assignment

    def _parents_of(self, record: TrialRecord) -> tuple[str, ...]:
        """The trained trials that differ in the fewest choices; of equals the one that was trained longest.

        A polish starts from another polish, or from the weights of its own trial.
        """
        if record.candidate.is_baseline or not self.limits.inherits:
            return ()
        trained = [item for item in self.study.records() if item.is_point and item.rungs and item.rungs[-1].steps > 0]
        if record.origin == POLISHED:
            own = record.candidate.digest
            trained = [item for item in trained if item.origin == POLISHED and item.candidate.digest != own]
        trained.sort(key=lambda item: (n_different(record.candidate, item.candidate), -item.rungs[-1].steps))
        return tuple(item.name for item in trained[:_N_PARENTS])

    def _tell(self, record: TrialRecord) -> None:
        self._polishing.pop(record.number, None)
        if isinstance(self.stop.reason, StorageError):
            return  # what is on disk is whole and stays so; the trial runs again on resume
        begin = time.perf_counter()
        record = replace(record, ended=self.run_seconds())
        with self.stop.abort_on_full_disk():
            self.study.tell(record)
            append_record(self.records_file, record)
        self.seconds += time.perf_counter() - begin
        if self.limits.patience is not None:
            self.limits.patience.update(record)
        self.listener(record)


def _with_outcome(asked: TrialRecord, state: State, outcome: dict[str, Any]) -> TrialRecord:
    latency = Latency(**outcome.pop("latency"))
    rungs = tuple(Rung(**rung) for rung in outcome.pop("rungs"))
    parent = outcome.pop("parent", UNCOMPRESSED)
    if not latency.ratio > 0:
        raise ValueError(f"a latency ratio must be positive, but is {latency.ratio}")
    parent = None if parent == UNCOMPRESSED else parent
    return replace(asked, state=state, latency=latency, rungs=rungs, parent=parent, **outcome)
