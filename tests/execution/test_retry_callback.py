"""A trial that Tune gave up runs again as long as it has retries left, counted over all of Tune's attempts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.air.execution._internal import actor_manager
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import ActorDiedError, NodeDiedError, ObjectLostError, OutOfMemoryError

from autocompress.execution.abort_stopper import AbortStopper
from autocompress.execution.checkpoint_callback import CheckpointCallback
from autocompress.execution.event_log_callback import EventLogCallback
from autocompress.execution.retry_callback import LOST, RetryCallback, worker_losses_restart_trials
from autocompress.execution.trial_queue import Assignment
from autocompress.results.records import TrialRecord
from autocompress.results.run_folder import RunFolder
from autocompress.space.candidate import Candidate

CANDIDATE = Candidate(weight_bits={"fc": 8})


def _nothing(*_: object) -> None:
    pass


class Tune:
    """Calls the callbacks for one trial as Ray Tune does, and keeps what they made of it."""

    def __init__(self, folder: Path, limit: int, failed_before: int = 0) -> None:
        stop, self.folder = AbortStopper(), RunFolder(folder / "run")
        self.update: list[tuple[str, int, str, bool]] = []
        retries = RetryCallback(lambda *what: self.update.append(what))
        log = EventLogCallback(self.folder.events, stop, retries)
        self.callbacks = [CheckpointCallback(self.folder, stop, retries, [log]), retries]
        self.folder.states.mkdir(parents=True)
        self.state.write_bytes(b"state")
        config = Assignment(TrialRecord(7, "failed", "sampler", CANDIDATE), n_failures=failed_before).config()
        self.trial: Any = SimpleNamespace(
            trial_id="a",
            config=config,
            max_failures=limit,
            run_metadata=SimpleNamespace(num_failures=0),
            temporary_state=SimpleNamespace(
                ray_actor=SimpleNamespace(prepare=SimpleNamespace(remote=lambda *what: None))
            ),
            error_file=str(folder / "error.txt"),
        )

    @property
    def state(self) -> Path:
        return self.folder.states / f"{CANDIDATE.digest}.pt"

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.folder.events.read_text().splitlines()]

    def tell(self, what: str) -> None:
        for callback in self.callbacks:
            getattr(callback, f"on_trial_{what}")(1, [self.trial], self.trial)

    def dies(self, runs: bool) -> None:
        """`TuneController._process_trial_failure`, once for a trial that runs, twice for one that does not yet."""
        self._fails(runs=True)
        if not runs:
            self._fails(runs=False)

    def _fails(self, runs: bool) -> None:
        if self.update:
            return
        self.trial.run_metadata.num_failures += 1
        with Path(self.trial.error_file).open("a") as file:
            file.write(f"Failure # {self.trial.run_metadata.num_failures} (occurred at noon)\nkilled\n by  a test\n")
        again = runs and self.trial.run_metadata.num_failures <= self.trial.max_failures
        self.tell("recover" if again else "error")


def test_a_trial_that_got_a_dead_worker_runs_again(tmp_path: Path) -> None:
    tune = Tune(tmp_path, limit=1)
    tune.dies(runs=False)
    assert tune.update == [("a", 1, "2 (occurred at noon) killed by a test", True)]
    (event,) = tune.events()
    assert (event["event"], event["trial"], event["n_failures"]) == ("restarted", 7, 1)
    assert event["reason"] == "its worker died before it began: 1 (occurred at noon) killed by a test"
    assert tune.state.exists(), "it continues from its last rung"


def test_a_trial_that_got_a_dead_worker_after_its_own_died_runs_again(tmp_path: Path) -> None:
    tune = Tune(tmp_path, limit=3, failed_before=1)
    tune.tell("start")
    tune.dies(runs=True)
    tune.dies(runs=False)
    assert tune.update == [("a", 3, "3 (occurred at noon) killed by a test", True)]
    told = [(event["event"], event.get("n_failures")) for event in tune.events()]
    assert told == [("started", None), ("restarted", 2), ("restarted", 3)]
    assert ["before it began" in event["reason"] for event in tune.events()[1:]] == [False, True]
    assert tune.state.exists()


@pytest.mark.parametrize(("limit", "before", "runs"), [(2, 0, True), (0, 0, True), (0, 0, False), (3, 3, False)])
def test_a_trial_that_used_its_retries_up_is_given_up(tmp_path: Path, limit: int, before: int, runs: bool) -> None:
    tune = Tune(tmp_path, limit, before)
    while not tune.update:
        if runs:
            tune.tell("start")
        tune.dies(runs)
    ((_, n_failures, _, again),) = tune.update
    assert (n_failures, again) == (limit + 1, False)
    assert tune.events()[-1]["event"] == "failed"
    assert not tune.state.exists()


def test_a_trial_of_which_tune_noted_nothing_has_a_reason_too(tmp_path: Path) -> None:
    tune = Tune(tmp_path, limit=3)
    tune.trial.run_metadata.num_failures = 1
    tune.tell("error")
    assert tune.update == [("a", 1, "unknown", True)]


@pytest.mark.parametrize(
    "error",
    [ActorDiedError(), OutOfMemoryError("low on memory"), NodeDiedError("gone"), ObjectLostError("0", None, "")],
    ids=lambda error: type(error).__name__,
)
def test_tune_takes_whatever_ends_a_worker_for_its_end(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    update: list[str] = []
    manager: Any = RayActorManager(resource_manager=SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setattr(manager, "_cleanup_actor", lambda tracked_actor: update.append("cleaned up"))
    actor = TrackedActor(1, on_error=lambda actor, error: update.append("actor"))
    task = TrackedActorTask(actor, on_error=lambda actor, error: update.append("task"))
    known = actor_manager.RayActorError
    with worker_losses_restart_trials():
        manager._actor_task_failed(task, error)
    assert update == ["cleaned up", "actor", "task"]
    assert isinstance(error, LOST)
    assert actor_manager.RayActorError is known, "Tune is as it was"


def test_the_course_of_a_finished_trials_figures_is_forgotten(tmp_path: Path) -> None:
    tune = Tune(tmp_path, limit=3)
    kept = SimpleNamespace(
        metric_analysis={"steps": {"max": 1}}, metric_n_steps={"steps": {"5": [1]}}, last_result={"outcome": "long"}
    )
    tune.trial.run_metadata = kept
    tune.callbacks[0].on_trial_complete(1, [tune.trial], tune.trial)
    assert kept.metric_analysis == kept.metric_n_steps == {}
    assert kept.last_result == {"done": True}
