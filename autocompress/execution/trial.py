"""One candidate's way through on a worker: compress, export, time, then fine-tune in rungs and judge each."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autocompress.compression import CalibrationStats, Recipe, rebuild, resolve, sparse_saving_bytes
from autocompress.config import SearchSettings
from autocompress.distillation import FineTune, Teacher
from autocompress.errors import MeasurementError
from autocompress.execution.locked_temp_dir import LockedTempDir
from autocompress.graph import ModelGraph
from autocompress.latency import MeasurementLock, time_sessions
from autocompress.publishing.artifact import save_student
from autocompress.results.records import Latency, Rung
from autocompress.runtimes import rounds_before_sums, runtime_named
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.task import Inputs, Task, as_inputs, call_model, check_metrics

_BYTES_PER_MIB = 2**20


@dataclass(frozen=True)
class SearchContext:
    """What every trial of a search shares; sent to a worker once.

    Attributes:
        task: what is compressed.
        model: the uncompressed model.
        graph: of the model.
        settings: of the search.
        reference: the uncompressed model's file for the runtime, as bytes.
        reference_ms: its latency, milliseconds.
        budget: largest feasible latency ratio, or None.
        min_score: smallest useful value of the metric, or None.
        metric: name of the metric to maximise.
        moments: see `moments_of`.
        half_range_weights: see `Recipe`.
    """

    task: Task
    model: nn.Module
    graph: ModelGraph
    settings: SearchSettings
    reference: bytes
    reference_ms: float
    budget: float | None
    metric: str
    min_score: float | None = None
    moments: Mapping[str, NDArray[np.float64]] | None = None
    half_range_weights: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a finished trial reports to the driver; the fields of `TrialRecord` that a worker knows."""

    metrics: Mapping[str, float]
    latency: Latency
    fine_tuned: bool
    n_params: int
    n_macs: int
    size_mib: float
    sparse_size_mib: float | None
    rungs: tuple[Rung, ...]
    seconds: Mapping[str, float]


class WorkerContext:
    """What a worker keeps from trial to trial: teacher, its outputs, calibration, evidence, the reference file."""

    def __init__(self, context: SearchContext) -> None:
        self.context = context
        self.measurement_lock = MeasurementLock()
        self.teacher = Teacher(copy.deepcopy(context.model))
        with self.measurement_lock.shared():  # the first access may load a whole data set
            self.calibration = [as_inputs(inputs) for inputs in context.task.calibration_batches()]
        shared = context.moments
        known = None if shared is None else {name: torch.from_numpy(second) for name, second in shared.items()}
        self.calibration_stats = CalibrationStats(
            context.model, context.graph, self.calibration, context.task, context.settings.seed, known
        )
        self.example_inputs = as_inputs(context.task.example_inputs())
        self.runtime = runtime_named(context.settings.runtime)
        self._scratch = LockedTempDir()
        self.folder = self._scratch.path
        reference = self.folder / "reference"
        reference.write_bytes(context.reference)
        self.reference = self.runtime.load(reference, context.settings.n_threads)

    def close(self) -> None:
        """Removes the worker's scratch folder."""
        self._scratch.close()


class Trial:
    """One candidate on a bench; each `step` is one rung.

    Attributes:
        done: True after the last rung.
    """

    def __init__(self, worker_context: WorkerContext, candidate: Candidate) -> None:
        self._worker_context, self._context = worker_context, worker_context.context
        self._candidate = candidate
        self._distill = worker_context.context.settings.distill.changed(candidate.fine_tune)
        self._seconds: dict[str, float] = {}
        self._rungs: list[Rung] = []
        self._best: dict[str, Tensor] = {}
        self.done = False
        self._built = False

    def step(self) -> None:
        """Compresses and times before the first rung; then trains to the next rung and judges the student there."""
        if not self._built:
            self._build()
            self._time()
        rung_steps = self._distill.rungs
        target = rung_steps[len(self._rungs)]
        with self._phase("fine-tune"):
            self._fine_tune.advance(target)
        self._judge(target)
        self.done = len(self._rungs) == len(rung_steps) or not self._worth_training

    def files(self) -> dict[str, bytes]:
        """The student of the best rung as `save_student` writes it: file name -> content. It travels to the driver."""
        with (
            tempfile.TemporaryDirectory(dir=self._worker_context.folder) as name,
            self._phase("save"),
            self._at_its_best(),
        ):
            folder = Path(name)
            save_student(folder, self._student, self._recipe)
            return {file.name: file.read_bytes() for file in folder.iterdir()}

    @contextmanager
    def _at_its_best(self) -> Iterator[None]:
        """The student has the best rung's weights inside, and those of the last rung afterwards."""
        if self._best_rung() is self._rungs[-1]:
            yield
            return
        last = copy.deepcopy(self._student.state_dict())
        self._student.load_state_dict(self._best)
        try:
            yield
        finally:
            self._student.load_state_dict(last)

    @property
    def progress(self) -> dict[str, Any]:
        """The last rung in numbers: `steps`, `latency_ratio` and the metrics by name."""
        rung = self._rungs[-1]
        return {"steps": rung.steps, "latency_ratio": self._latency.ratio, "metrics": dict(rung.metrics)}

    def outcome(self) -> Outcome:
        """What is known of the finished trial; the metrics are the best rung's (training can hurt)."""
        return Outcome(
            metrics=self._best_rung().metrics,
            latency=self._latency,
            fine_tuned=len(self._rungs) > 1,
            n_params=sum(parameter.numel() for parameter in self._student.parameters()),
            n_macs=n_macs(self._student, self._worker_context.example_inputs),
            size_mib=self._size_mib,
            sparse_size_mib=self._sparse_size_mib,
            rungs=tuple(self._rungs),
            seconds=dict(self._seconds),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on after the last rung: tensors, numbers and text only."""
        return {
            "candidate": self._candidate.to_json(),
            "recipe": self._recipe.to_dict(),
            "rungs": [(rung.steps, dict(rung.metrics)) for rung in self._rungs],
            "latency": dict(self._latency.__dict__),
            "size_mib": self._size_mib,
            "seconds": dict(self._seconds),
            "best": self._best,
            "fine_tune": self._fine_tune.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self._set_student(Recipe.from_dict(state["recipe"]), None)
        self._rungs = [Rung(steps, metrics) for steps, metrics in state["rungs"]]
        self._latency = Latency(**state["latency"])
        self._size_mib = state["size_mib"]
        self._seconds = dict(state["seconds"])
        self._best = dict(state["best"])
        self._fine_tune.load_state_dict(state["fine_tune"])

    def _best_rung(self) -> Rung:
        """The first of the best: training that gains nothing is not kept."""
        return max(self._rungs, key=lambda rung: rung.metrics[self._context.metric])

    @property
    def _sparse_size_mib(self) -> float | None:
        if not self._recipe.sparse_layers:
            return None
        saved = sparse_saving_bytes(self._student, self._recipe.sparse_layers)
        return float(self._size_mib) - saved / _BYTES_PER_MIB

    @property
    def _worth_training(self) -> bool:
        if self._candidate.is_baseline:
            return False
        budget = self._context.budget
        return budget is None or self._latency.ratio <= budget * (1 + self._context.settings.fine_tune_margin)

    def _build(self) -> None:
        with self._phase("compress"), self._worker_context.measurement_lock.shared():
            context = self._context
            worker_context = self._worker_context
            settings = context.settings
            recipe = resolve(
                context.model,
                context.graph,
                self._candidate,
                settings.importance,
                worker_context.calibration_stats,
                settings.activation_aware,
            )
            recipe = replace(
                recipe,
                rounds_before_sums=rounds_before_sums(worker_context.runtime),
                half_range_weights=context.half_range_weights,
            )
            self._set_student(recipe, worker_context.calibration)

    def _set_student(self, recipe: Recipe, calibration: list[Inputs] | None) -> None:
        context = self._context
        self._recipe = recipe
        self._student = rebuild(
            context.model,
            context.graph,
            recipe,
            calibration,
            context.settings.reconstruct,
            self._worker_context.calibration_stats,
            context.settings.activation_aware,
            context.settings.quantize,
        )
        self._fine_tune = FineTune(
            self._student,
            self._worker_context.teacher,
            context.task,
            self._distill,
            context.settings.seed,
            self._worker_context.measurement_lock.shared,
        )
        self._built = True

    def _time(self) -> None:
        worker_context, settings = self._worker_context, self._context.settings
        with self._phase("export"), worker_context.measurement_lock.shared():
            file = worker_context.runtime.export(self._student, worker_context.example_inputs, worker_context.folder)
            session = worker_context.runtime.load(file, settings.n_threads)
            self._size_mib = file.stat().st_size / _BYTES_PER_MIB
        # the reference's latency on another machine does not tell whether this one is quiet
        quiet_ms = self._context.reference_ms if settings.latency_resource is None else None
        with self._phase("measure"):
            timing = time_sessions(
                session,
                worker_context.reference,
                worker_context.example_inputs,
                measurement_lock=worker_context.measurement_lock,
                quiet_ms=quiet_ms,
            )
        ms = timing.ratio * self._context.reference_ms
        self._latency = Latency(timing.ratio, timing.spread, ms, timing.n_rounds)

    def _judge(self, steps: int) -> None:
        def predict(inputs: Inputs) -> Tensor:
            with self._worker_context.measurement_lock.shared(), torch.no_grad():
                outputs: Tensor = call_model(self._student, inputs)
            return outputs

        with self._phase("evaluate"):
            metrics = check_metrics(self._context.task.evaluate(predict, "selection"), "selection")
        if self._context.metric not in metrics:
            raise MeasurementError(f"evaluate must give {self._context.metric!r}, but gave {sorted(metrics)}")
        self._rungs.append(Rung(steps, metrics))
        if self._best_rung() is self._rungs[-1]:
            self._best = copy.deepcopy(self._student.state_dict())

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Adds the seconds of a phase, without those spent waiting for a turn, which are counted apart."""
        begin, waited = time.perf_counter(), self._worker_context.measurement_lock.waited
        try:
            yield
        finally:
            waiting = self._worker_context.measurement_lock.waited - waited
            elapsed = time.perf_counter() - begin - waiting
            self._seconds[name] = self._seconds.get(name, 0.0) + elapsed
            self._seconds["wait"] = self._seconds.get("wait", 0.0) + waiting


def moments_of(context: SearchContext, space: SearchSpace) -> dict[str, NDArray[np.float64]] | None:
    """Second moments of what the layers read, for all workers; None where no choice needs them.

    They are NumPy's arrays, which all workers of a machine read in the object store's memory without a copy.
    """
    if not context.settings.activation_aware or all(knob.kind != "rank_ratio" for knob in space.knobs):
        return None
    calibration = [as_inputs(inputs) for inputs in context.task.calibration_batches()]
    moments = CalibrationStats(context.model, context.graph, calibration).low_rank.moments
    return {name: second.numpy() for name, second in moments.items()}


def n_macs(model: nn.Module, inputs: Inputs) -> int:
    """Multiply-accumulates of one sample."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call_model(model, inputs)
    first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0]
    return int(counter.get_total_flops()) // 2 // first.shape[0]
