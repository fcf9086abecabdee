"""The queue: the next trial, its config for a worker, and its result."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from optuna.samplers import RandomSampler

from autocompress.errors import StorageError
from autocompress.execution.abort_stopper import AbortStopper
from autocompress.execution.polish import PolishPlanner, PolishSettings
from autocompress.execution.run_clock import RunClock
from autocompress.execution.trial import Measured, Outcome, TrialPlan
from autocompress.execution.trial_queue import Assignment, Limits, TrialQueue
from autocompress.execution.worker import plan_of
from autocompress.results.records import Latency, Rung, TrialRecord, read_records
from autocompress.sampling.early_stopping import Patience
from autocompress.sampling.study import POLISHED, SearchStudy
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Knob, SearchSpace
from tests.shared.objectives import of_accuracy

SPACE = SearchSpace(tuple(Knob("weight_bits", f"fc{i}", (32, 8)) for i in range(4)))


class Run:
    """A queue on a study on disk, and a clock that the test sets."""

    def __init__(self, folder: Path, n_trials: int = 4, n_points: int = 3, minutes: float | None = None) -> None:
        self.now, self.minutes, self.folder, self.n_trials, self.n_points = 0.0, minutes, folder, n_trials, n_points
        self.file = folder / "trials.jsonl"
        self.start()
        baseline = TrialRecord(
            0, "complete", "baseline", Candidate(), {"accuracy": 0.95}, Latency(1.0, 0.0, 1.0, 9), n_macs=100
        )
        self.study.add(baseline)

    def start(self) -> int:
        """Opens the study, as a new driver does; returns how many trials run again."""
        self.study = SearchStudy(self.folder / "journal", SPACE, RandomSampler(seed=0), of_accuracy(1.0))
        n_again = self.study.requeue_interrupted()
        clock = RunClock(self.minutes, 0.4, lambda: self.now)
        polish = PolishPlanner(of_accuracy(1.0), PolishSettings(self.n_points, 300, 1), clock)
        limits = Limits(clock, self.n_trials - max(0, self.study.n_finished - 1))
        self.queue = TrialQueue(self.study, self.file, limits, AbortStopper(), polish, run_seconds=lambda: self.now)
        return n_again

    def next(self) -> Assignment:
        found = self.queue.next()
        assert found is not None
        return found

    def end(self, assignment: Assignment, ratio: float = 0.5, accuracy: float = 0.8, **more: object) -> TrialRecord:
        self.queue.ended(assignment, "complete", json.dumps(asdict(replace(outcome(ratio, accuracy), **more))))  # type: ignore[arg-type]
        return self.study.records()[-1]

    def explored(self) -> None:
        """Four trials, of which each is on the front."""
        for i in range(4):
            self.end(self.next(), 0.2 + i / 10, 0.6 + i / 20)


def outcome(ratio: float, accuracy: float) -> Outcome:
    return Outcome(
        {"accuracy": accuracy}, Latency(ratio, 0.01, ratio, 9), True, 10, 100, 0.5, None,
        (Rung(0, {"accuracy": 0.1}), Rung(100, {"accuracy": accuracy})), {"fine-tune": 10.0}, "uncompressed",
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.mark.parametrize("name", ["journal", ""])
def test_a_study_that_was_removed_ends_the_search_and_nothing_is_written_anew(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    run = Run(tmp_path / "run")
    assignment = run.next()
    gone = tmp_path / "run" / name
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    run.queue.ended(assignment, "complete", json.dumps(asdict(outcome(0.5, 0.8))))
    assert isinstance(run.queue.stop.reason, StorageError)
    assert not gone.exists()
    assert run.queue.next() is None


def test_lost_trials_come_first_then_candidates_then_polishes(run: Run) -> None:
    first, second = run.next(), run.next()
    run.queue.give_back(first, 2)
    assert run.next() == replace(first, n_failures=2)
    for assignment in (first, second, run.next(), run.next()):
        run.end(assignment, 0.2 + assignment.record.number / 20, 0.6 + assignment.record.number / 40)
    polishes = [run.next() for _ in range(3)]
    assert run.queue.next() is None
    ratios = [item.measured.latency.ratio for item in polishes if item.measured and item.measured.latency]
    assert ratios == sorted(ratios, reverse=True) and len(set(ratios)) == 3
    assert {item.record.origin for item in polishes} == {POLISHED}
    run.queue.give_back(polishes[1], 1)
    assert run.next() == replace(polishes[1], n_failures=1)


def test_candidates_that_are_still_queued_do_not_get_into_the_polish(run: Run) -> None:
    """What an exploration that is over has left in the study's queue stays there."""
    run.explored()
    run.study.enqueue([Candidate(weight_bits={"fc0": 8, "fc1": 8, "fc2": 8, "fc3": 8})], "solver")
    explored = {record.candidate for record in run.study.explored()}
    for _ in range(3):
        assignment = run.next()
        assert assignment.measured is not None
        assert assignment.record.candidate == assignment.measured.candidate and assignment.polish_steps == 300
        assert assignment.record.candidate in explored
        run.end(assignment, accuracy=0.9)
    assert run.queue.next() is None


def test_a_worker_is_told_all_that_its_plan_needs(run: Run) -> None:
    first = run.next()
    assert plan_of(json.loads(json.dumps(first.config()))) == TrialPlan(first.record.candidate)
    run.end(first)
    for _ in range(3):
        run.end(run.next(), 0.9, 0.2)
    polish = run.next()
    config = json.loads(json.dumps(polish.config()))
    assert plan_of(config) == TrialPlan(polish.record.candidate, 300, Measured(Latency(0.5, 0.01, 0.5, 9), 0.5))
    assert config["name"] == polish.record.name and config["parents"][0] == first.record.name


def test_parents_are_the_nearest_trained_trials_and_the_one_that_was_used_is_recorded(run: Run) -> None:
    near = [Candidate(weight_bits={"fc0": 8}), Candidate(weight_bits={"fc0": 8, "fc1": 8, "fc2": 8, "fc3": 8})]
    run.study.enqueue(
        [*near, Candidate(weight_bits={"fc0": 8, "fc1": 8}), Candidate(weight_bits={"fc3": 8})], "uniform"
    )
    first, second = run.next(), run.next()
    assert first.parents == second.parents == (), "nothing was trained before"
    assert run.end(first).parent is None, "the uncompressed model's weights"
    run.end(second)
    third = run.next()
    assert third.parents == (first.record.name,)
    assert run.end(third, parent=first.record.name).parent == first.record.name
    fourth = run.next()
    assert fourth.parents == (first.record.name,)
    assert read_records(run.file)[-1].parent == first.record.name


def test_a_trial_without_training_is_nobodys_parent(run: Run) -> None:
    run.end(run.next(), rungs=(Rung(0, {"accuracy": 0.8}),))
    assert run.next().parents == ()


def test_a_polish_keeps_the_latency_that_its_origin_had(run: Run) -> None:
    run.explored()
    polish = run.next()
    record = run.end(polish, 0.99, 0.93)
    assert polish.measured is not None
    assert (record.latency, record.origin) == (polish.measured.latency, POLISHED)
    assert record.feasible and read_records(run.file)[-1] == record


def test_a_polish_that_was_cut_off_comes_first_after_a_restart_and_none_comes_twice(run: Run) -> None:
    run.explored()
    done, cut_off = run.next(), run.next()
    run.end(done, accuracy=0.9)
    assert run.start() == 1
    again = run.next()
    assert (again.record.number, again.polish_steps, again.measured) == (
        cut_off.record.number, 300, cut_off.measured,
    )  # fmt: skip
    assert again.parents[0] == cut_off.parents[0]
    last = run.next()
    assert len({item.record.candidate for item in (done, again, last)}) == 3
    for item in (again, last):
        run.end(item, accuracy=0.9)
    assert run.queue.next() is None
    assert run.start() == 0 and run.queue.next() is None
    assert [record.origin for record in run.study.records()].count(POLISHED) == 3


def test_an_exploring_trial_and_a_polish_that_were_cut_off_both_run_again(run: Run) -> None:
    run.n_trials = 5
    run.start()
    run.explored()
    exploring = run.next()
    polish = run.next()
    assert polish.polish_steps == 300
    assert run.start() == 2
    again = [run.next(), run.next()]
    assert [item.record.candidate for item in again] == [polish.record.candidate, exploring.record.candidate]
    assert [item.polish_steps for item in again] == [300, 0]


def test_exploration_ends_by_the_clock_and_everything_does_a_little_later(tmp_path: Path) -> None:
    run = Run(tmp_path, n_trials=100, minutes=1.0)
    first = run.next()
    run.now = 40.0
    assert not run.queue.explores
    second = run.next()
    assert second.polish_steps == 0, "there is nothing to polish yet, and time is left"
    run.end(first)
    assert run.next().polish_steps == 300
    run.queue.give_back(first, 1)
    run.now = 55.0
    assert run.queue.next() is None


def test_after_the_polish_no_candidate_begins_that_could_not_end(tmp_path: Path) -> None:
    run = Run(tmp_path, n_trials=50, n_points=1, minutes=10.0)
    for accuracy in (0.6, 0.7):
        trial = run.next()
        run.now += 100.0
        run.end(trial, accuracy - 0.2, accuracy)
    run.now = 400.0  # exploration ends at 324 s, everything at 540
    polish = run.next()
    assert polish.polish_steps
    run.end(polish, 0.2, 0.96)
    candidate = run.next()
    assert candidate.record.origin != POLISHED, "a candidate takes 100 s, and 140 are left"
    run.now = 470.0
    run.end(candidate, 0.9, 0.5)
    assert run.queue.next() is None, "70 are left"


def test_patience_ends_the_exploration_and_not_the_polish(run: Run) -> None:
    run.queue.limits = Limits(run.queue.limits.clock, 100, Patience(1, of_accuracy(1.0)))
    for _ in range(2):
        assert run.queue.explores
        run.end(run.next(), 0.4, 0.8)
    assert not run.queue.explores
    assert run.next().polish_steps == 300


def test_without_a_planner_nothing_is_polished(run: Run) -> None:
    run.queue.polish = None
    run.explored()
    assert run.queue.next() is None
