"""Keeps what workers send: finished trials' files, and the states from which cut-off trials go on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ray import tune

from autocompress.execution.abort_stopper import AbortStopper
from autocompress.execution.retry_callback import RetryCallback
from autocompress.execution.worker import FILES, STATE
from autocompress.results.run_folder import RunFolder
from autocompress.space.candidate import Candidate


class CheckpointCallback(tune.Callback):
    """Writes reports' files into the run's folder, on the driver, and hands states back to restarted trials.

    A trial's files are on disk before the study is told that it is over. States are kept by candidate, so that a
    trial goes on from its last rung after its worker died, and on resume after the driver died.

    Args:
        folder: of the run.
        stop: told when the disk does not take what is written.
        retries: knows whether a trial that Tune gave up runs again.
    """

    def __init__(self, folder: RunFolder, stop: AbortStopper, retries: RetryCallback) -> None:
        self._folder, self._stop, self._retries = folder, stop, retries

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called when a worker is ready for the trial, before its first step there."""
        state = self._state_of(trial)
        if state.is_file():
            trial.temporary_state.ray_actor.restore_state.remote(state.read_bytes())

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Takes the bytes out of the report, so that Tune does not keep them for as long as the search lasts."""
        state, files = result.pop(STATE, None), result.pop(FILES, None)
        with self._stop.abort_on_full_disk():
            if result.get("done") and files is not None:  # also where it was stopped early
                folder = self._folder.trial(trial.config["name"])
                folder.mkdir(parents=True, exist_ok=True)
                for name, content in files.items():
                    _write(folder / name, content)
            if result.get("done"):
                self._state_of(trial).unlink(missing_ok=True)
            elif state is not None:
                _write(self._state_of(trial), state)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called after the searcher heard of the end: lets go what nobody reads any more.

        Tune keeps all its trials until the search ends, and then writes them into its own folder, which is removed.
        """
        trial.run_metadata.metric_analysis.clear()
        trial.run_metadata.metric_n_steps.clear()
        trial.run_metadata.last_result = {"done": True}
        trial.evaluated_params, trial.experiment_tag = {}, ""

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called when Tune gives the trial up."""
        if not self._retries.again(trial):
            self._state_of(trial).unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes all states, when there is nothing left to go on with."""
        shutil.rmtree(self._folder.states, ignore_errors=True)

    def _state_of(self, trial: Any) -> Path:
        digest = Candidate.from_dict(json.loads(trial.config["candidate"])).digest
        return self._folder.states / f"{digest}.pt"


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all, also when the power fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.tmp")
    with temporary.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    temporary.replace(file)
