"""The searcher asks the study and tells it; what is on disk afterwards is what happened."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import ray.cloudpickle as cloudpickle
from optuna.samplers import RandomSampler
from ray.tune.search import Searcher

from autocompress.config import ALL_THAT_FIT
from autocompress.errors import StorageError
from autocompress.execution.abort_stopper import AbortStopper
from autocompress.execution.optuna_searcher import OptunaSearcher
from autocompress.execution.run_clock import RunClock
from autocompress.execution.trial import Outcome
from autocompress.execution.trial_queue import Limits, TrialQueue
from autocompress.results.records import Latency, Rung, TrialRecord, read_records
from autocompress.sampling.early_stopping import Patience
from autocompress.sampling.study import SearchStudy
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Knob, SearchSpace
from tests.shared.objectives import of_accuracy

SPACE = SearchSpace((Knob("weight_bits", "conv", (32, 8)), Knob("weight_bits", "fc", (32, 8))))


class Run:
    """A searcher with all that it tells."""

    def __init__(self, folder: Path) -> None:
        self.journal, self.file = folder / "study.journal", folder / "trials.jsonl"
        self.study = SearchStudy(self.journal, SPACE, RandomSampler(seed=0), of_accuracy(0.5))
        self.update: list[TrialRecord] = []
        self.now = 0.0
        self.stop = AbortStopper()
        self.clock = RunClock(None, 0.3, lambda: self.now)
        self.limited()

    def limited(
        self, n_trials: int = ALL_THAT_FIT, patience: Patience | None = None, seconds: float | None = None
    ) -> None:
        """Starts anew with these limits."""
        if seconds is not None:
            self.clock = RunClock(seconds / 60, 0.3, lambda: self.now)
        limits = Limits(self.clock, n_trials, patience)
        self.queue = TrialQueue(
            self.study, self.file, limits, self.stop, run_seconds=lambda: self.now, listener=self.update.append
        )
        self.searcher = OptunaSearcher(self.queue)

    def suggest(self, trial_id: str) -> dict[str, object]:
        config = self.searcher.suggest(trial_id)
        assert isinstance(config, dict)
        return config


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def outcome(ratio: float) -> Outcome:
    return Outcome(
        metrics={"accuracy": 0.9, "loss": 0.3},
        latency=Latency(ratio, 0.01, 2 * ratio, 9),
        fine_tuned=True,
        n_params=100,
        n_macs=1000,
        size_mib=0.5,
        sparse_size_mib=0.4,
        rungs=(Rung(0, {"accuracy": 0.5}), Rung(20, {"accuracy": 0.9})),
        seconds={"compress": 1.0, "wait": 0.5},
        parent="uncompressed",
    )


@pytest.mark.parametrize(("ratio", "feasible"), [(0.4, True), (0.5, True), (0.51, False)])
def test_a_complete_trial_is_told_written_and_heard(run: Run, ratio: float, feasible: bool) -> None:
    run.now = 3.0
    config = run.suggest("a")
    run.now = 8.0
    run.searcher.on_trial_result("a", {"done": False})
    assert not run.file.exists()
    given = outcome(ratio)
    run.searcher.on_trial_complete("a", {"outcome": json.dumps(asdict(given)), "done": True})
    (record,) = read_records(run.file)
    assert run.update == run.study.records() == [record]
    asked = {"number": record.number, "name": record.name, "candidate": record.candidate.to_json()}
    assert config == {
        **asked,
        "n_failures": 0,
        "polish_steps": 0,
        "polish_seconds": None,
        "parents": [],
        "measured": None,
    }
    assert (record.state, record.origin, record.feasible) == ("complete", "sampler", feasible)
    assert (record.started, record.ended) == (3.0, 8.0)
    for name in (
        "metrics",
        "latency",
        "fine_tuned",
        "n_params",
        "n_macs",
        "size_mib",
        "sparse_size_mib",
        "rungs",
        "seconds",
    ):
        assert getattr(record, name) == getattr(given, name), name


def test_a_trial_that_raised_keeps_its_traceback(run: Run) -> None:
    run.suggest("a")
    run.searcher.on_trial_complete("a", {"failed": "Traceback ...\nCompressionError: no", "done": True})
    (record,) = read_records(run.file)
    assert (record.state, record.error) == ("failed", "Traceback ...\nCompressionError: no")
    assert run.study.n_finished == len(run.update) == 1


@pytest.mark.parametrize("result", [None, {"done": False}])
def test_a_trial_whose_retries_are_used_up_is_a_failed_one(run: Run, result: dict[str, object] | None) -> None:
    run.suggest("a")
    run.searcher.on_trial_complete("a", result, error=True)
    assert not run.file.exists(), "what becomes of it is not known yet"
    run.searcher.on_trial_lost("a", 4, "out of memory", again=False)
    (record,) = read_records(run.file)
    assert record.state == "failed"
    assert str(record.error) == "the worker process died, and so did every retry: out of memory"


def test_a_trial_that_runs_again_is_given_out_before_new_ones_and_told_once(run: Run) -> None:
    first, other = run.suggest("a"), run.suggest("b")
    run.searcher.on_trial_complete("a", error=True)
    run.searcher.on_trial_lost("a", 2, "killed", again=True)
    assert not run.file.exists()
    assert run.suggest("c") == {**first, "n_failures": 2}
    assert run.suggest("d")["number"] not in (first["number"], other["number"])
    run.searcher.on_trial_complete("c", {"outcome": json.dumps(asdict(outcome(0.3)))})
    (record,) = read_records(run.file)
    assert (record.number, record.state) == (first["number"], "complete")
    assert run.study.n_finished == 1


def test_the_last_trial_may_have_to_run_again(run: Run) -> None:
    run.limited(n_trials=2)
    first, _ = run.suggest("a"), run.suggest("b")
    assert run.searcher.suggest("c") is None, "two were asked for; one of them may come back"
    run.searcher.on_trial_complete("b", {"failed": "x"})
    assert run.searcher.suggest("c") is None
    run.searcher.on_trial_complete("a", error=True)
    run.searcher.on_trial_lost("a", 1, "killed", again=True)
    assert run.suggest("c")["number"] == first["number"]
    assert run.searcher.suggest("d") is None
    run.searcher.on_trial_complete("c", {"failed": "y"})
    assert run.searcher.suggest("d") == Searcher.FINISHED
    assert run.study.n_finished == 2


def test_an_exhausted_space_is_not_asked_again_while_its_last_trial_runs(run: Run) -> None:
    asked = [run.suggest(str(i)) for i in range(4)]
    assert run.searcher.suggest("more") is None
    size = run.journal.stat().st_size
    assert run.searcher.suggest("more") is None
    assert run.journal.stat().st_size == size
    for i in range(4):
        run.searcher.on_trial_complete(str(i), {"failed": "x"})
    assert run.searcher.suggest("more") == Searcher.FINISHED
    assert len({config["candidate"] for config in asked}) == 4


def test_no_trial_runs_again_after_a_reason_to_stop(run: Run) -> None:
    run.suggest("a")
    run.searcher.on_trial_complete("a", error=True)
    run.searcher.on_trial_lost("a", 1, "killed", again=True)
    run.stop.abort(StorageError("full"))
    assert run.searcher.suggest("b") == Searcher.FINISHED
    again = SearchStudy(run.journal, SPACE, RandomSampler(seed=1), of_accuracy(0.5))
    assert again.requeue_interrupted() == 1


@pytest.mark.parametrize("result", [None, {}, {"done": False}])
def test_a_trial_that_was_cut_off_before_its_first_rung_stays_open_and_runs_again(
    run: Run, result: dict[str, object] | None
) -> None:
    config = run.suggest("a")
    run.searcher.on_trial_complete("a", result)
    assert not run.file.exists()
    assert run.update == []
    again = SearchStudy(run.journal, SPACE, RandomSampler(seed=1), of_accuracy(0.5))
    assert again.requeue_interrupted() == 1
    asked = again.ask()
    assert asked is not None
    assert asked.candidate.to_json() == config["candidate"]


def test_a_worker_that_can_run_no_trial_stops_the_search_and_its_trial_runs_again(run: Run) -> None:
    config = run.suggest("a")
    run.searcher.on_trial_complete("a", {"unusable": "the worker on pi5 cannot run trials: no data", "done": True})
    assert str(run.stop.reason) == "the worker on pi5 cannot run trials: no data"
    last: object = run.searcher.suggest("b")
    assert last == Searcher.FINISHED
    again = SearchStudy(run.journal, SPACE, RandomSampler(seed=1), of_accuracy(0.5))
    assert again.requeue_interrupted() == 1
    asked = again.ask()
    assert asked is not None
    assert asked.candidate.to_json() == config["candidate"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_stops_the_search_and_nothing_is_told_after_it(run: Run) -> None:
    run.suggest("a")
    run.suggest("b")
    run.file.symlink_to("/dev/full")
    run.searcher.on_trial_complete("a", {"failed": "x"})
    assert isinstance(run.stop.reason, StorageError)
    assert "No space left on device" in str(run.stop.reason)
    told = run.journal.read_bytes()
    run.searcher.on_trial_complete("b", {"failed": "x"})
    assert run.journal.read_bytes() == told
    again = SearchStudy(run.journal, SPACE, RandomSampler(seed=1), of_accuracy(0.5))
    assert [record.error for record in again.records()] == ["x"], "told before its line was written"
    assert again.requeue_interrupted() == 1


def test_trials_at_the_same_time_are_kept_apart(run: Run) -> None:
    run.study.enqueue([Candidate(weight_bits={"fc": 8}), Candidate(weight_bits={"conv": 8})], "uniform")
    first, second = run.suggest("a"), run.suggest("b")
    run.searcher.on_trial_complete("b", {"failed": "b"})
    run.searcher.on_trial_complete("a", {"outcome": json.dumps(asdict(outcome(0.3)))})
    records = {record.number: record for record in read_records(run.file)}
    assert records[int(str(first["number"]))].candidate == Candidate(weight_bits={"fc": 8})
    assert records[int(str(second["number"]))].error == "b"


def test_an_exhausted_space_ends_the_search(run: Run) -> None:
    for i in range(4):
        run.suggest(str(i))
        run.searcher.on_trial_complete(str(i), {"outcome": json.dumps(asdict(outcome(0.3)))})
        if len({record.candidate for record in run.update}) == 4:
            break
    while len({record.candidate for record in run.update}) < 4:
        run.suggest("more")
        run.searcher.on_trial_complete("more", {"outcome": json.dumps(asdict(outcome(0.3)))})
    last: object = run.searcher.suggest("last")
    assert last == Searcher.FINISHED


def test_the_searcher_that_tune_pickles_carries_nothing(run: Run, tmp_path: Path) -> None:
    run.suggest("a")
    assert len(cloudpickle.dumps(run.searcher)) < 300
    run.searcher.save(str(tmp_path / "state"))
    run.searcher.restore(str(tmp_path / "state"))
    assert (tmp_path / "state").stat().st_size == 0


def test_its_own_time_is_counted(run: Run) -> None:
    assert run.queue.seconds == 0
    run.suggest("a")
    asking = run.queue.seconds
    assert 0 < asking < 5
    run.searcher.on_trial_complete("a", {"failed": "x"})
    assert run.queue.seconds > asking


# --- early ends


def test_a_trial_that_was_stopped_early_has_a_record_of_its_own(run: Run) -> None:
    run.suggest("a")
    run.suggest("b")
    so_far = json.dumps(asdict(replace(outcome(0.4), rungs=(Rung(0, {"accuracy": 0.1}),), metrics={"accuracy": 0.1})))
    run.searcher.on_trial_complete("b", {"so_far": so_far, "done": True})
    (record,) = read_records(run.file)
    assert (record.state, record.metrics, len(record.rungs)) == ("stopped", {"accuracy": 0.1}, 1)
    assert run.study.n_finished == 1


def test_a_trial_that_ctrl_c_cut_off_is_not_a_stopped_one(run: Run) -> None:
    run.suggest("a")
    run.searcher.on_trial_complete("a", {"so_far": json.dumps(asdict(outcome(0.4))), "done": False})
    run.searcher.on_experiment_end()
    assert not run.file.exists()


def test_what_running_trials_have_reached_counts_when_time_is_up(run: Run) -> None:
    run.limited(seconds=60)
    reached, before = run.suggest("a"), run.suggest("b")
    run.searcher.on_trial_result("a", {"so_far": json.dumps(asdict(outcome(0.4))), "done": False})
    run.searcher.on_experiment_end()
    assert not run.file.exists(), "time is not up: Ctrl-C ended the search"
    run.now = 54.0
    last: object = run.searcher.suggest("c")
    assert last is None, "nothing new begins"
    run.searcher.on_experiment_end()
    (record,) = read_records(run.file)
    assert (record.number, record.state, record.metrics) == (reached["number"], "stopped", outcome(0.4).metrics)
    again = SearchStudy(run.journal, SPACE, RandomSampler(seed=1), of_accuracy(0.5))
    assert again.requeue_interrupted() == 1, "the other had come to no rung"
    asked = again.ask()
    assert asked is not None and asked.candidate.to_json() == before["candidate"]


@pytest.mark.parametrize(
    "report",
    [
        "{}",
        "no JSON",
        '{"latency": 3}',
        json.dumps({**asdict(outcome(-1.0)), "surprise": 1}),
        json.dumps(asdict(outcome(-0.5))),
    ],
)
def test_a_report_that_makes_no_sense_is_a_failed_trial(run: Run, report: str) -> None:
    run.suggest("a")
    run.searcher.on_trial_complete("a", {"outcome": report, "done": True})
    (record,) = read_records(run.file)
    assert record.state == "failed"
    assert "makes no sense" in str(record.error)
    assert run.suggest("b"), "the search continues"


def test_a_search_without_gain_ends_if_asked(run: Run) -> None:
    patience = Patience(1, of_accuracy())
    run.limited(patience=patience)
    for trial_id in ("a", "b"):
        run.suggest(trial_id)
        run.searcher.on_trial_complete(trial_id, {"outcome": json.dumps(asdict(outcome(0.4))), "done": True})
    assert patience.over, "the second one is no better than the first"
    assert run.searcher.suggest("c") == Searcher.FINISHED
