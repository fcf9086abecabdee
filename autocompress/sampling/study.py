"""The study on the driver's disk, the one source of truth: proposals, results, and trials that must run again."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from autocompress.results.objectives import Objectives, ratio
from autocompress.results.records import TrialRecord
from autocompress.sampling.early_stopping import expected_score
from autocompress.sampling.initial_candidates import strong_candidate
from autocompress.sampling.journal import StudyJournal, StudyStorage
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace

REFINED = "refined"
POLISHED = "polished"
_POLISH = "polish"  # attribute of a trial: what is known of a polish
_NAME = "autocompress"
_PATIENCE = 5  # repeated proposals in a row before random candidates are tried
_MAX_REPEATS = 60
_PAST = ("fixed_params", "tpe:relative_params")  # how Optuna's samplers begin the names of what they note for a while
_LEARNT_FROM = 1024  # numbers before a trial's whose records say what it would have reached; more would only cost time


@dataclass(frozen=True)
class Asked:
    """A trial that the study gave out.

    Attributes:
        number: of the trial.
        candidate: to try.
        origin: who proposed it, see `TrialRecord`.
        polish: of a polish, the notes that `ask_polish` was given.
    """

    number: int
    candidate: Candidate
    origin: str
    polish: Mapping[str, int] | None = None


class SearchStudy:
    """An Optuna study of the metric in its direction and of the latency ratio, with the limits as constraints.

    Every knob is an integer: the position of the choice in its ordered list. A trial's full record is kept in the
    study, so that `trials.jsonl` can be written anew from it.

    Args:
        path: of the journal file; made if missing. The caller holds the run's lock. None keeps the study in memory.
        space: of the search.
        sampler: who proposes.
        objectives: of the search.
        predict: the predicted latency ratio of a candidate; one whose prediction misses the budget is reported to the
            sampler as infeasible by as much, and never given out. None gives out whatever is proposed.
    """

    def __init__(
        self,
        path: Path | None,
        space: SearchSpace,
        sampler: BaseSampler,
        objectives: Objectives,
        predict: Callable[[Candidate], float] | None = None,
    ) -> None:
        self.space, self.objectives, self._predict = space, objectives, predict
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._journal = None if path is None else _journal(path)
        self._records: dict[int, TrialRecord] = {}
        self._known: dict[str, TrialRecord] = {}
        self._storage = InMemoryStorage() if self._journal is None else StudyStorage(self._journal, self._slim)
        with self._written_at_once():
            self._study = optuna.create_study(
                study_name=_NAME,
                storage=self._storage,
                sampler=sampler,
                directions=[objectives.direction, "minimize"],
                load_if_exists=True,
            )
        self._distributions: dict[str, BaseDistribution] = {
            knob.name: IntDistribution(0, len(knob.choices) - 1) for knob in space.knobs
        }
        self._open: dict[int, tuple[optuna.Trial, str]] = {}
        self._cut_off: list[FrozenTrial] = []  # polishes that an earlier start of the run left unfinished

    @property
    def n_finished(self) -> int:
        """Complete, stopped and failed trials; without interrupted ones, which run again, repeated and refined ones."""
        return len(self.explored())

    @property
    def n_open(self) -> int:
        """Trials that were given out and not told, or that are queued to run again."""
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        again = sum("again" in trial.user_attrs for trial in waiting)
        return len(self._open) + len(self._cut_off) + again

    def explored(self) -> list[TrialRecord]:
        """The records from which a sampler and early stopping may learn: without those of longer training."""
        return [record for record in self.records() if not record.is_trained_longer]

    def records(self) -> list[TrialRecord]:
        """The records of all finished trials, by number."""
        return [self._records[number] for number in sorted(self._records)]

    def _slim(self, trial: FrozenTrial) -> None:
        """Drops the record and other unread data of an ended trial from memory; the journal has all of it."""
        if "record" in trial.user_attrs and trial.number not in self._records:
            self._note(TrialRecord.from_dict(trial.user_attrs["record"]))
        trial.user_attrs = {key: value for key, value in trial.user_attrs.items() if key != "record"}
        trial.system_attrs = {k: value for k, value in trial.system_attrs.items() if not k.startswith(_PAST)}

    def use(self, sampler: BaseSampler) -> None:
        """Lets another sampler propose from now on."""
        self._study.sampler = sampler

    def requeue_interrupted(self) -> int:
        """Closes trials that were running when the driver died; returns how many are queued to run again.

        A trial whose record was on disk already is ended with it; a polish keeps its number, see `ask_cut_off`. May
        itself be killed at any point and called again.
        """
        requeued = {trial.user_attrs.get("again") for trial in self._study.get_trials(deepcopy=False)}
        n_again = 0
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "record" in trial.user_attrs:
                record = TrialRecord.from_dict(trial.user_attrs["record"])
                self._tell(self._handle(trial), record, constrained=bool(trial.constraints))
                self._note(record)
                continue
            if _POLISH in trial.user_attrs:
                self._cut_off.append(trial)
                n_again += 1
                continue
            if trial.number not in requeued:
                attrs = {"origin": trial.user_attrs.get("origin", "sampler"), "again": trial.number}
                self._study.enqueue_trial(trial.params, user_attrs=attrs)
            self._study.tell(trial.number, state=TrialState.FAIL)
            n_again += 1
        return n_again

    def enqueue(self, candidates: Iterable[Candidate], origin: str) -> None:
        """Queues candidates of the space, to be asked for before the sampler proposes."""
        with self._written_at_once():
            for candidate in candidates:
                self._study.enqueue_trial(self._params_of(candidate), user_attrs={"origin": origin})

    def has_proposed(self, origin: str) -> bool:
        """Whether a trial of that origin was ever queued or given out."""
        return any(trial.user_attrs.get("origin") == origin for trial in self._study.get_trials(deepcopy=False))

    def is_judged(self, candidate: Candidate) -> bool:
        """Whether there is a record of the candidate, longer training left out."""
        return candidate.digest in self._known

    def _params_of(self, candidate: Candidate) -> dict[str, int]:
        """Positions of a candidate's choices in the knobs' lists."""
        choices = self.space.choices_of(candidate)
        return {knob.name: knob.choices.index(choices[knob.name]) for knob in self.space.knobs}

    def add(self, record: TrialRecord) -> None:
        """Adds a trial that is finished already, such as the uncompressed model; its number is `next_number`."""
        with self._written_at_once():
            trial = self._begin(record.candidate, {"origin": record.origin})
            self._open[trial.number] = trial, record.candidate.digest
            self.tell(record)

    def add_known(self, record: TrialRecord) -> None:
        """Adds a record of an earlier study under its own number; numbers that no record has are failed trials."""
        with self._written_at_once():
            while self.next_number < record.number:
                self._study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
            if record.origin == REFINED:
                self.add_refined(record)
            else:
                self.add(record)

    def _begin(self, candidate: Candidate, attrs: dict[str, Any]) -> optuna.Trial:
        """A running trial of that candidate; whatever is queued stays queued."""
        number = self.next_number
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=self._params_of(candidate),
                distributions=self._distributions,
                user_attrs=attrs,
            )
        )
        return self._handle(self._study.get_trials(deepcopy=False)[number])

    def _handle(self, trial: FrozenTrial) -> optuna.Trial:
        """The study gives open trials out only once; another handle on one needs its storage id."""
        return optuna.Trial(self._study, trial._trial_id)

    @property
    def next_number(self) -> int:
        """The number that the next trial will have."""
        return len(self._study.get_trials(deepcopy=False))

    def add_refined(self, record: TrialRecord) -> None:
        """Adds a record of a candidate that was judged before and trained on, out of the sampler's sight.

        Longer training is no merit of the candidate's choices, so the sampler must not learn from it.

        Args:
            record: its number is `next_number`, its origin "refined".
        """
        with self._written_at_once():
            attrs = {"record": record.to_dict(), "origin": record.origin}
            self._study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=attrs))
        self._note(record)

    def ask_cut_off(self) -> Asked | None:
        """A polish that an earlier start of the run left unfinished, under its own number; None when there is none."""
        if not self._cut_off:
            return None
        frozen = self._cut_off.pop(0)
        choices = {knob.name: knob.choices[frozen.params[knob.name]] for knob in self.space.knobs}
        return self._opened_polish(self._handle(frozen), self.space.candidate(choices), frozen.user_attrs[_POLISH])

    def _opened_polish(self, trial: optuna.Trial, candidate: Candidate, notes: Mapping[str, int]) -> Asked:
        self._open[trial.number] = trial, candidate.digest
        return Asked(trial.number, candidate, POLISHED, dict(notes))

    def ask_polish(self, candidate: Candidate, notes: Mapping[str, int]) -> Asked:
        """A trial that trains a candidate further which was judged before, out of the sampler's sight.

        Longer training is no merit of the candidate's choices, so the sampler must not learn from it.

        Args:
            candidate: of an ended trial.
            notes: what the study remembers of it, also for a later start of the run.
        """
        with self._written_at_once():
            trial = self._begin(candidate, {"origin": POLISHED, _POLISH: dict(notes)})
        return self._opened_polish(trial, candidate, notes)

    def ask(self) -> Asked | None:
        """The next trial, one that was neither judged before nor is running.

        A proposal that was judged before is answered from its record. A sampler that keeps repeating itself gets random
        candidates in between.

        Returns:
            None when no new candidate is found: the space is exhausted.
        """
        with self._written_at_once():
            return self._ask()

    def _ask(self) -> Asked | None:
        running = {digest for trial, digest in self._open.values() if _POLISH not in trial.user_attrs}
        for i in range(_MAX_REPEATS):
            if i >= _PATIENCE:
                self.enqueue([self._drawn(i)], "random")
            trial, candidate = self._propose()
            known = self._known.get(candidate.digest)
            excess = self._predicted_excess(candidate)
            if known is not None:
                trial.set_user_attr("repeats", known.number)
                self._tell(trial, known)
            elif candidate.digest in running:
                self._study.tell(trial, state=TrialState.FAIL)  # its twin will be told; this one says nothing
            elif excess > 0:
                trial.set_constraint("latency", excess)
                self._study.tell(trial, state=TrialState.PRUNED)  # infeasible by so much, and nothing was measured
            else:
                trial.set_user_attr("digest", candidate.digest)
                self._open[trial.number] = trial, candidate.digest
                return Asked(trial.number, candidate, str(trial.user_attrs.get("origin", "sampler")))
        return None

    def _propose(self) -> tuple[optuna.Trial, Candidate]:
        trial = self._study.ask(fixed_distributions=self._distributions)
        params = trial.params  # a deep copy each time
        choices = {knob.name: knob.choices[params[knob.name]] for knob in self.space.knobs}
        return trial, self.space.candidate(choices)

    def _written_at_once(self) -> AbstractContextManager[None]:
        """Collects the writes of a block into one."""
        return nullcontext() if self._journal is None else self._journal.batch()

    def _predicted_excess(self, candidate: Candidate) -> float:
        if self._predict is None or self.objectives.budget is None:
            return 0.0
        return self._predict(candidate) - self.objectives.budget

    def tell(self, record: TrialRecord) -> None:
        """Ends an asked trial with its record, which must be on disk before the study says that the trial is over."""
        trial, _ = self._open.pop(record.number)
        with self._written_at_once():
            trial.set_user_attr("record", record.to_dict())
            self._tell(trial, record)
        self._note(record)

    def _note(self, record: TrialRecord) -> None:
        self._records[record.number] = record
        if not record.is_trained_longer:
            self._known[record.candidate.digest] = record

    def judged(self, record: TrialRecord) -> TrialRecord:
        """The record of an ended trial with `feasible` set."""
        excesses = self.objectives.excesses(record)
        return replace(record, feasible=all(excess <= 0 for excess in excesses.values()))

    def _expected(self, record: TrialRecord) -> float:
        """The metric that is told to the sampler: for a trial that was stopped early, its expected final value."""
        first = record.number - _LEARNT_FROM
        others = (other for other in self.explored() if other.number >= first)
        return expected_score(record, others, self.objectives)

    def _drawn(self, attempt: int) -> Candidate:
        """A random candidate; where predictions screen, every second one with most knobs at their strongest."""
        seed = (len(self._known) + len(self._open)) * _MAX_REPEATS + attempt  # no draw has another's
        strong = self._predict is not None and attempt % 2 == 1
        return strong_candidate(self.space, seed) if strong else self.space.sample(seed)

    def _tell(self, trial: optuna.Trial, record: TrialRecord, constrained: bool = False) -> None:
        told = [self._expected(record), ratio(record)]
        hidden = record.origin == POLISHED
        if hidden or record.state == "failed" or not all(map(math.isfinite, told)):
            self._study.tell(trial, state=TrialState.FAIL)
            return
        if not constrained:
            for name, excess in self.objectives.excesses(record, told[0]).items():
                trial.set_constraint(name, excess)
        self._study.tell(trial, told)


def _journal(path: Path) -> StudyJournal:
    _mend(path)
    return StudyJournal(path)


def _mend(path: Path) -> None:
    """Makes a journal usable after its writer was killed: cuts off half a line, removes the writer's lock."""
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if not path.exists():
        return
    with path.open("rb") as file:
        whole = sum(len(line) for line in file if line.endswith(b"\n"))
    if whole < path.stat().st_size:
        warnings.warn(f"{path}: the last entry was cut off and is dropped", stacklevel=2)
        with path.open("r+b") as file:
            file.truncate(whole)
