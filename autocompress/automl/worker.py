"""The Ray Tune trainable: one trial at a time on a bench that outlives them, one rung per Tune step."""

from __future__ import annotations

import json
import logging
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ray import tune

from autocompress.automl.bench import Bench, Job, Trial
from autocompress.candidate import Candidate

_CHECKPOINT = "trial.pt"


class Worker(tune.Trainable):
    """See `tune.Trainable`; reused from trial to trial, so the teacher and the data are loaded once per process.

    The config of a trial has `number`, `name` and `candidate` (canonical JSON). A trial that raises reports its
    traceback instead of killing the process.
    """

    def setup(self, config: dict[str, Any], job: Job | None = None) -> None:
        """Called once per process: makes the bench."""
        assert job is not None
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        self._bench: Bench | None = None
        self._trial: Trial | None = None
        self._job = job
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Called for each further trial."""
        self._start(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One rung."""
        try:
            return self._step()
        except Exception:
            self._trial = None  # half a trial cannot be saved
            return {"failed": traceback.format_exc(), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Tensors, numbers and text; read back with `weights_only=True`."""
        if self._trial is not None and not self._trial.done:
            torch.save(self._trial.state_dict(), Path(checkpoint_dir) / _CHECKPOINT)

    def load_checkpoint(self, checkpoint: dict[str, Any] | str | None) -> None:
        """Goes on after the last rung, on another process than the one that saved."""
        file = Path(str(checkpoint)) / _CHECKPOINT
        if file.is_file():
            self._trial = self._new_trial()
            self._trial.load_state_dict(torch.load(file, weights_only=True))

    def cleanup(self) -> None:
        """Called when the process ends."""
        if self._bench is not None:
            self._bench.close()

    def _start(self, config: dict[str, Any]) -> None:
        self._candidate = Candidate.from_dict(json.loads(config["candidate"]))
        self._name = str(config["name"])
        self._trial = None

    def _new_trial(self) -> Trial:
        if self._bench is None:
            self._bench = Bench(self._job)
        torch.manual_seed(self._job.settings.seed)
        return Trial(self._bench, self._candidate, self._name)

    def _step(self) -> dict[str, Any]:
        if self._trial is None:
            self._trial = self._new_trial()
        self._trial.step()
        if not self._trial.done:
            return {"done": False}
        return {"outcome": json.dumps(asdict(self._trial.outcome())), "done": True}
