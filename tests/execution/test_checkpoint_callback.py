"""What workers send is on disk, in the run's folder; what a trial starts from is sent to its worker."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune

from autocompress.errors import StorageError
from autocompress.execution.abort_stopper import AbortStopper
from autocompress.execution.checkpoint_callback import CheckpointCallback
from autocompress.execution.retry_callback import RetryCallback
from autocompress.execution.trial import TrainedFiles
from autocompress.execution.trial_queue import Assignment
from autocompress.results.records import TrialRecord
from autocompress.results.run_folder import RunFolder
from autocompress.space.candidate import Candidate

CANDIDATE = Candidate(weight_bits={"fc": 8})
FILES = {"weights.safetensors": b"weights", "recipe.json": b"recipe"}


class Listener(tune.Callback):
    """Notes the reports that it sees."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.seen.append(dict(result))


class Search:
    """The callback as Tune calls it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.listener, self.stop = RunFolder(folder), Listener(), AbortStopper()
        self.prepared: list[tuple[bytes | None, list[TrainedFiles]]] = []
        self.callback = CheckpointCallback(self.folder, self.stop, RetryCallback(lambda *what: None), [self.listener])

    def trial(self, number: int = 3, polish_steps: int = 0, parents: tuple[str, ...] = ()) -> Any:
        record = TrialRecord(number, "failed", "sampler", CANDIDATE)
        remote = SimpleNamespace(remote=lambda state, trained: self.prepared.append((state, trained)))
        return SimpleNamespace(
            config=Assignment(record, polish_steps, parents).config(),
            temporary_state=SimpleNamespace(ray_actor=SimpleNamespace(prepare=remote)),
        )

    def start(self, trial: Any) -> tuple[bytes | None, list[TrainedFiles]]:
        self.callback.on_trial_start(1, [trial], trial)
        return self.prepared[-1]

    def report(self, trial: Any, **result: Any) -> dict[str, Any]:
        self.callback.on_trial_result(1, [trial], trial, result)
        return result


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path / "run")


def test_bytes_are_on_disk_and_no_further_callback_sees_them(search: Search) -> None:
    trial = search.trial()
    left = search.report(trial, steps=20, done=False, state=b"state", files=FILES)
    assert left == {"steps": 20, "done": False}, "nor does Tune keep them"
    assert search.listener.seen == [left]
    folder = search.folder.trial("trial_0003")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert search.start(trial) == (b"state", [])
    search.report(trial, outcome="{}", done=True, files={"recipe.json": b"better"})
    assert (folder / "recipe.json").read_bytes() == b"better"
    assert search.listener.seen[-1] == {"outcome": "{}", "done": True}
    assert search.start(trial) == (None, []), "what is over leaves no state"


@pytest.mark.parametrize("result", [{"files": FILES, "done": True}, {"state": b"state", "done": False}])
def test_a_folder_that_was_removed_ends_the_search_and_is_not_made_again(
    search: Search, result: dict[str, Any]
) -> None:
    search.report(search.trial(1), steps=0, done=False, state=b"state", files=FILES)
    shutil.rmtree(search.folder.path)
    search.report(search.trial(2), **result)
    assert isinstance(search.stop.reason, StorageError) and "removed or changed" in str(search.stop.reason)
    assert not search.folder.path.exists()


def test_a_polish_has_a_state_of_its_own(search: Search) -> None:
    exploring, polish = search.trial(3), search.trial(9, polish_steps=300)
    search.report(exploring, done=False, state=b"exploring")
    search.report(polish, done=False, state=b"polish")
    assert (search.start(exploring)[0], search.start(polish)[0]) == (b"exploring", b"polish")
    search.report(polish, done=True)
    assert (search.start(exploring)[0], search.start(polish)[0]) == (b"exploring", None)
    search.callback.clear()
    assert search.start(exploring)[0] is None


def test_parents_are_sent_to_a_trial_that_begins_and_not_to_one_that_continues(search: Search) -> None:
    search.report(search.trial(1), done=True, files=FILES)
    trial = search.trial(3, parents=("trial_0001", "trial_0002"))
    assert search.start(trial) == (None, [TrainedFiles("trial_0001", FILES)]), "trial 2 left no files"
    search.report(trial, done=False, state=b"state")
    assert search.start(trial) == (b"state", [])
