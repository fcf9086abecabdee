"""The Ray Tune trainable: one trial at a time in a process that is reused, one rung per Tune step."""

from __future__ import annotations

import errno
import io
import json
import logging
import platform
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ray
import torch
from ray import tune

from autocompress.devices import AUTO, find_device, without_index
from autocompress.errors import InputError
from autocompress.execution.shared_context import SharedContext
from autocompress.execution.time_limit import TimeLimit, TimeLimitError
from autocompress.execution.trial import Measured, TrainedFiles, Trial, TrialPlan, WorkerContext
from autocompress.results.records import Latency
from autocompress.search_context import threads_of
from autocompress.space.candidate import Candidate

FILES, STATE = "files", "state"


class UnusableWorkerError(Exception):
    """This machine cannot run any trial, whatever the candidate."""


class Worker(tune.Trainable):
    """See `tune.Trainable`; reused from trial to trial, so the teacher and the data are loaded once per process.

    The config of a trial is that of an `Assignment`. A step reports

    - after each rung, the trial's `progress`, its outcome `so_far`, under `STATE` the bytes from which another process
      can continue, and under `FILES` the compressed model's files by name;
    - after the last, its `outcome` and `FILES`;
    - `failed`, the traceback of a trial that raised or took too long: that does not kill the process;
    - `unusable`, one line, when this machine cannot run any trial (no data, a full disk).

    Files and states travel to the driver in the report: a worker shares no disk with it.
    """

    def setup(self, config: dict[str, Any], context: SharedContext | None = None) -> None:
        """Called once per process; the worker's context is made by the first step, whose report can say what failed."""
        assert context is not None
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        torch.set_num_threads(threads_of(context.settings))
        self._worker_context: WorkerContext | None = None
        self._context = context
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Called for each further trial."""
        self._start(new_config)
        return True

    def prepare(self, state: bytes | None, trained: Sequence[TrainedFiles]) -> None:
        """Called before the first step of a trial.

        Args:
            state: of a trial that another process began, or None.
            trained: trials whose weights may be the start.
        """
        self._state, self._trained = state, trained

    def step(self) -> dict[str, Any]:
        """One rung."""
        try:
            with self._limit.running():
                return self._step(self._ready_context())
        except UnusableWorkerError as error:
            return {"unusable": str(error), "done": True}
        except (Exception, TimeLimitError):
            return {"failed": traceback.format_exc(), "done": True}

    def cleanup(self) -> None:
        """Called when the process ends."""
        if self._worker_context is not None:
            self._worker_context.close()

    def _start(self, config: dict[str, Any]) -> None:
        self._plan = plan_of(config)
        self._limit = TimeLimit(self._context.settings.trial_minutes if not self._plan.polish_steps else None)
        self._trial: Trial | None = None
        self.prepare(None, ())

    def _ready_context(self) -> WorkerContext:
        if self._worker_context is None:
            try:
                self._worker_context = WorkerContext(self._context.get(), self._device())
            except Exception as error:
                raise _unusable(error) from error
        return self._worker_context

    def _device(self) -> torch.device:
        """The device that the settings name; of the GPUs only those that Ray gave this worker are seen here.

        Raises:
            InputError: a GPU was asked for, and there is none.
        """
        settings = self._context.settings
        if not settings.gpus_per_trial:
            return find_device(settings.device)
        device = find_device(without_index(settings.device))
        if settings.device == AUTO and device.type == "cpu":
            raise InputError(
                f"gpus_per_trial is {settings.gpus_per_trial:g}, but torch {torch.__version__} finds no accelerator on "
                f"{platform.node()}; install a build of torch for it, start Ray there with --num-gpus=0, or set "
                "gpus_per_trial to 0"
            )
        if device.type == "cuda" and settings.gpus_per_trial < 1:  # others have the rest
            torch.cuda.set_per_process_memory_fraction(settings.gpus_per_trial)
        return device

    def _step(self, worker_context: WorkerContext) -> dict[str, Any]:
        try:
            if self._trial is None:
                self._trial = self._new_trial(worker_context)
            trial = self._trial
            trial.step()
            outcome = json.dumps(asdict(trial.outcome()))
            if not trial.done:
                state = _to_bytes(trial.state_dict())
                return {**trial.progress, "so_far": outcome, STATE: state, FILES: trial.files(), "done": False}
            return {**trial.progress, "outcome": outcome, FILES: trial.files(), "done": True}
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise _unusable(error) from error
            raise

    def _new_trial(self, worker_context: WorkerContext) -> Trial:
        torch.manual_seed(self._context.settings.seed)
        if self._state is None:
            trial = Trial.begin(worker_context, self._plan, self._trained)
        else:
            state = torch.load(io.BytesIO(self._state), weights_only=True)
            trial = Trial.restore(worker_context, self._plan, state)
        self._state, self._trained = None, ()
        return trial


def plan_of(config: Mapping[str, Any]) -> TrialPlan:
    """The plan that an assignment's config holds."""
    measured = None
    if config["measured"] is not None:
        found = json.loads(config["measured"])
        measured = Measured(Latency(**found["latency"]), found["size_mib"])
    candidate = Candidate.from_dict(json.loads(config["candidate"]))
    return TrialPlan(candidate, config["polish_steps"], measured, config["polish_seconds"])


def _to_bytes(state: dict[str, Any]) -> bytes:
    """Tensors, numbers and text; read back with `weights_only=True`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _unusable(error: Exception) -> UnusableWorkerError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = lines[0]
    if isinstance(error, ray.exceptions.RaySystemError) or "No module named" in str(error):
        # Ray's own words come first, and the cause last
        line = f"it cannot read the task: {lines[-1].strip()}; install what the task imports on that machine"
    return UnusableWorkerError(f"the worker on {platform.node()} cannot run trials: {line}")
