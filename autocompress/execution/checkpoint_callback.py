"""Writes the files and checkpoints that workers send, and gives trials their checkpoint and parents at the start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from autocompress.execution.abort_stopper import AbortStopper
from autocompress.execution.retry_callback import RetryCallback
from autocompress.execution.trial import TrainedFiles
from autocompress.execution.worker import FILES, STATE
from autocompress.files import write_atomically
from autocompress.publishing.artifact import RECIPE, WEIGHTS
from autocompress.results.run_folder import RunFolder
from autocompress.space.candidate import Candidate


class CheckpointCallback(tune.Callback):
    """Writes reports' files into the run's folder, on the driver, and hands states and parents to starting trials.

    A trial's files are on disk before the study records its end. States are kept by candidate, so that a trial
    continues from its last rung after its worker died, and on resume after the driver died.

    The bytes are taken out of a report before any of the further callbacks sees it, so that no logger has to carry
    them and Tune does not keep them for as long as the search lasts.

    Args:
        folder: of the run.
        stop: aborts the search when the disk does not take what is written.
        retries: says whether a trial that Tune ended after lost workers runs again.
        further: callbacks that see reports without the bytes, in this order.
    """

    def __init__(
        self, folder: RunFolder, stop: AbortStopper, retries: RetryCallback, further: Sequence[tune.Callback] = ()
    ) -> None:
        self._folder, self._stop, self._retries, self._further = folder, stop, retries, list(further)

    def setup(self, stop: Any = None, num_samples: Any = None, total_num_samples: Any = None, **info: Any) -> None:
        """Called once, before any trial."""
        for callback in self._further:
            callback.setup(stop, num_samples, total_num_samples, **info)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called when a worker is ready for the trial, before its first step there."""
        file = self._state_of(trial)
        state = file.read_bytes() if file.is_file() else None
        parents = [] if state is not None else [self._trained(name) for name in trial.config["parents"]]
        trial.temporary_state.ray_actor.prepare.remote(state, [parent for parent in parents if parent is not None])
        for callback in self._further:
            callback.on_trial_start(iteration, trials, trial, **info)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Writes what a report brings: files after every rung, and the state unless the trial is done."""
        state, files = result.pop(STATE, None), result.pop(FILES, None)
        with self._stop.abort_on_full_disk():
            if files is not None:
                folder = self._folder.made(self._folder.trial(trial.config["name"]))
                for name, content in files.items():
                    write_atomically(folder / name, content)
            if result.get("done"):
                self._state_of(trial).unlink(missing_ok=True)
            elif state is not None:
                self._folder.made(self._folder.states)
                write_atomically(self._state_of(trial), state)
        for callback in self._further:
            callback.on_trial_result(iteration, trials, trial, result, **info)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called after the searcher recorded the end: deletes the checkpoint.

        Tune keeps all its trials until the search ends, and then writes them into its own folder, which is removed.
        """
        for callback in self._further:
            callback.on_trial_complete(iteration, trials, trial, **info)
        trial.run_metadata.metric_analysis.clear()
        trial.run_metadata.metric_n_steps.clear()
        trial.run_metadata.last_result = {"done": True}
        trial.evaluated_params, trial.experiment_tag = {}, ""

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called when a worker died and the trial is queued again."""
        for callback in self._further:
            callback.on_trial_recover(iteration, trials, trial, **info)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called when Tune ends the trial with an error."""
        for callback in self._further:
            callback.on_trial_error(iteration, trials, trial, **info)
        if not self._retries.again(trial):
            self._state_of(trial).unlink(missing_ok=True)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Called once, at the end."""
        for callback in self._further:
            callback.on_experiment_end(trials, **info)

    def clear(self) -> None:
        """Removes all states, when there is nothing left to continue."""
        shutil.rmtree(self._folder.states, ignore_errors=True)

    def _state_of(self, trial: Any) -> Path:
        digest = Candidate.from_dict(json.loads(trial.config["candidate"])).digest
        kind = "-polish" if trial.config["polish_steps"] else ""
        return self._folder.states / f"{digest}{kind}.pt"

    def _trained(self, name: str) -> TrainedFiles | None:
        """A trial's files; None where they are no longer there, which costs the child nothing but a start."""
        folder = self._folder.trial(name)
        try:
            files = {file: (folder / file).read_bytes() for file in (WEIGHTS, RECIPE)}
        except OSError:
            return None
        return TrainedFiles(name, files)
