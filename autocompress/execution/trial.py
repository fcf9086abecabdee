"""One candidate on a worker: compress, choose a start, export, time, then train in rungs and judge each."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autocompress.batches import n_samples
from autocompress.compression import CalibrationStats, RebuildOptions, Recipe, rebuild, resolve, sparse_saving_bytes
from autocompress.compression.pipeline import UNCOMPRESSED, Parent, Rebuilding, best_of, student_from
from autocompress.config import DistillSettings
from autocompress.devices import CPU, PeakMemory, full_precision, has_float64, model_on, on_device
from autocompress.distillation.fine_tune import FineTune, Teacher
from autocompress.errors import MeasurementError
from autocompress.evaluation import evaluate_model
from autocompress.execution.deadline import Deadline
from autocompress.execution.teacher_file import load_teacher
from autocompress.latency import MeasurementLock, time_sessions
from autocompress.locked_temp_dir import LockedTempDir
from autocompress.publishing.artifact import load_student, save_student
from autocompress.results.records import Latency, Rung
from autocompress.runtimes import export_for, rounds_before_sums, runtime_named
from autocompress.search_context import SearchContext, device_here
from autocompress.space.candidate import Candidate
from autocompress.task import Batch, Inputs, Predict, as_batch, call_model
from autocompress.task_access import calibration_of, examples_of

_BYTES_PER_MIB = 2**20
_HELD_OUT_SEED = 7919  # of the training batches on which starts are compared; no training begins with it
_N_HELD_OUT = 2
_STEPS_BETWEEN_LOOKS = 25  # at the clock, by a polish that has to end in time
_LONG_POLISH = 600  # steps of a polish from which on there is a rung half-way, where it can resume
_LEAST_SUBSET = 500
_EVALUATION_SHARE = 0.1  # of a trial's passes; a training step is three forward passes


@dataclass(frozen=True)
class TrialPlan:
    """What a worker is asked to do.

    Attributes:
        candidate: to compress to.
        polish_steps: training steps of a polish; 0 for a trial of the exploration.
        measured: latency and size of a polish's structure, which an earlier trial has measured.
        polish_seconds: that a polish may take from its beginning on; None leaves its steps as they are.
    """

    candidate: Candidate
    polish_steps: int = 0
    measured: Measured | None = None
    polish_seconds: float | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured from an exported student, which training does not change."""

    latency: Latency
    size_mib: float


@dataclass(frozen=True)
class Start:
    """What a trial begins with.

    Attributes:
        recipe: of the student.
        student: the compressed model, before it is trained.
        parent: name of the trial whose weights it has, or `UNCOMPRESSED`.
    """

    recipe: Recipe
    student: nn.Module
    parent: str


@dataclass(frozen=True)
class TrainedFiles:
    """What a trained trial left on the driver's disk: the files that `save_student` wrote, by name."""

    name: str
    files: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True)
class Outcome:
    """What a trial reports to the driver; the fields of `TrialRecord` that a worker knows."""

    metrics: Mapping[str, float]
    latency: Latency
    fine_tuned: bool
    n_params: int
    n_macs: int
    size_mib: float
    sparse_size_mib: float | None
    rungs: tuple[Rung, ...]
    seconds: Mapping[str, float]
    parent: str
    peak_memory_mib: float | None = None


class WorkerContext:
    """What a worker keeps from trial to trial: teacher, its outputs, calibration, statistics, the reference file.

    Args:
        context: of the search; its model is on the CPU.
        device: where the worker computes; None finds the one that the settings name.
    """

    def __init__(self, context: SearchContext, device: torch.device | None = None) -> None:
        device = device_here(context.settings) if device is None else device
        self.context, self.device = context, device
        self.measurement_lock = MeasurementLock()
        # students are made where closed forms can be computed, and trained on the device
        self.building_device = device if has_float64(device) else CPU
        self.model = model_on(context.model, self.building_device)
        with self.measurement_lock.shared():  # the first access may load a whole data set
            self.calibration = [on_device(inputs, self.building_device) for inputs in calibration_of(context.task)]
            self.held_out = full_precision(on_device(_held_out(context), self.building_device))
        shared = context.moments
        known = None if shared is None else {name: torch.from_numpy(second) for name, second in shared.items()}
        self.calibration_stats = CalibrationStats(
            self.model, context.graph, self.calibration, context.task, context.settings.seed, known
        )
        self.example_inputs = examples_of(context.task)
        self.runtime = runtime_named(context.settings.runtime)
        settings = context.settings
        options = RebuildOptions(settings.reconstruct, settings.activation_aware, settings.quantize)
        self.rebuilding = Rebuilding(context.graph, self.calibration, options)
        self._temp_dir = LockedTempDir()
        self.folder = self._temp_dir.path
        reference = self.folder / "reference"
        reference.write_bytes(context.reference)
        self.reference = self.runtime.load(reference, context.settings.n_threads)
        self.teacher = Teacher(copy.deepcopy(context.model).to(device), engine=self._engine())

    def _engine(self) -> Predict | None:
        if self.context.teacher_file is None or self.device.type != "cpu":
            return None
        file = self.folder / "teacher"
        file.write_bytes(self.context.teacher_file)
        return load_teacher(file, self.context)

    def close(self) -> None:
        """Removes the worker's temporary folder."""
        self._temp_dir.close()

    def student_of(self, trained: TrainedFiles) -> tuple[nn.Module, Recipe]:
        """A trained trial's student and its recipe."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            for file, content in trained.files.items():
                (Path(name) / file).write_bytes(content)
            return load_student(Path(name), self.model, self.context.graph)

    def parent_of(self, trained: TrainedFiles) -> Parent:
        """A trained trial's weights, written back into the uncompressed model."""
        student, recipe = self.student_of(trained)
        base = Parent(UNCOMPRESSED, self.model)
        return Parent.trained(trained.name, student, recipe, base, self.context.graph)


class Trial:
    """One candidate on a worker; each `step` trains to the next rung and judges the student there.

    Made whole by `begin` or by `restore`.
    """

    def __init__(self, worker: WorkerContext, plan: TrialPlan, start: Start, memory: PeakMemory) -> None:
        self._worker, self._context, self._plan = worker, worker.context, plan
        self._recipe, self._student, self._parent = start.recipe, start.student.to(worker.device), start.parent
        self._memory = memory
        self._deadline = None if plan.polish_seconds is None else Deadline(plan.polish_seconds)
        self._training = training_of(self._context.settings.distill, plan)
        self._fine_tune = FineTune(
            self._student,
            worker.teacher,
            self._context.task,
            self._training,
            self._context.settings.seed,
            worker.measurement_lock.shared,
        )
        self._seconds: dict[str, float] = {}
        self._rungs: list[Rung] = []
        self._best: dict[str, Tensor] = {}
        self._measured: Measured | None = plan.measured

    @classmethod
    def begin(cls, worker: WorkerContext, plan: TrialPlan, trained: Sequence[TrainedFiles] = ()) -> Trial:
        """Compresses the candidate from the best start, and times the student where that is not known.

        Args:
            worker: where the trial runs.
            plan: what is asked.
            trained: trials whose weights may be the start; of a polish the first is the trial that is polished, and the
                uncompressed model's weights are none.
        """
        begin, waited = time.perf_counter(), worker.measurement_lock.waited
        memory = PeakMemory(worker.device)
        with worker.measurement_lock.shared():
            start = _start(worker, plan, trained)
        trial = cls(worker, plan, start, memory)
        waiting = worker.measurement_lock.waited - waited
        trial._seconds |= {"compress": time.perf_counter() - begin - waiting, "wait": waiting}
        if trial._measured is None:
            trial._measured = trial._measure()
        return trial

    @classmethod
    def restore(cls, worker: WorkerContext, plan: TrialPlan, state: Mapping[str, Any]) -> Trial:
        """The trial after the rung at which `state_dict` was taken, perhaps in another process."""
        memory = PeakMemory(worker.device)
        recipe = Recipe.from_dict(state["recipe"])
        with worker.measurement_lock.shared():
            # without calibration: the state has all tensors
            student = rebuild(worker.model, worker.context.graph, recipe, None, worker.rebuilding.options)
        trial = cls(worker, plan, Start(recipe, student, state.get("parent", UNCOMPRESSED)), memory)
        trial._rungs = [Rung(steps, metrics) for steps, metrics in state["rungs"]]
        if "planned_rungs" in state:
            trial._training = replace(trial._training, rungs=tuple(state["planned_rungs"]))
        trial._measured = Measured(Latency(**state["latency"]), state["size_mib"])
        trial._seconds = dict(state["seconds"])
        trial._best = dict(state["best"])
        trial._fine_tune.load_state_dict(state["fine_tune"])
        return trial

    @property
    def done(self) -> bool:
        """Whether the last rung was judged, or training is not worth while."""
        return bool(self._rungs) and (len(self._rungs) == len(self._training.rungs) or not self._worth_training)

    def step(self) -> None:
        """Trains to the next rung and judges the student there."""
        with self._phase("fine-tune"):
            self._train_to_next_rung()
        self._judge(self._fine_tune.step)

    def _train_to_next_rung(self) -> None:
        """Trains; a polish with a deadline looks at the clock now and then, and moves its end."""
        fine_tune, n_rungs = self._fine_tune, len(self._rungs)
        while fine_tune.step < self._training.rungs[n_rungs]:
            target = self._training.rungs[n_rungs]
            if self._deadline is None:
                fine_tune.advance(target)
                continue
            begin, step = time.monotonic(), fine_tune.step
            fine_tune.advance(min(target, step + _STEPS_BETWEEN_LOOKS))
            seconds = (time.monotonic() - begin) / (fine_tune.step - step)
            to_come = self._seconds.get("evaluate", 0.0) * (len(self._training.rungs) - n_rungs) / max(n_rungs, 1)
            n_steps = self._deadline.n_steps(fine_tune.step, fine_tune.schedule.n_steps, seconds, to_come)
            if n_steps != fine_tune.schedule.n_steps:
                fine_tune.schedule.end_at(n_steps, fine_tune.step)
                between = [rung for rung in self._training.rungs[n_rungs:-1] if fine_tune.step < rung < n_steps]
                rungs = (*self._training.rungs[:n_rungs], *between, n_steps)
                self._training = replace(self._training, rungs=rungs)

    def files(self) -> dict[str, bytes]:
        """The student of the best rung as `save_student` writes it: file name -> content. It travels to the driver."""
        with tempfile.TemporaryDirectory(dir=self._worker.folder) as name, self._phase("save"), self._with_best():
            folder = Path(name)
            save_student(folder, model_on(self._student, CPU), self._recipe)
            return {file.name: file.read_bytes() for file in folder.iterdir()}

    @property
    def progress(self) -> dict[str, Any]:
        """The last rung in numbers: `steps`, `latency_ratio` and the metrics by name."""
        rung = self._rungs[-1]
        return {"steps": rung.steps, "latency_ratio": self._known.latency.ratio, "metrics": dict(rung.metrics)}

    def outcome(self) -> Outcome:
        """What is known of the trial now; the metrics are the best rung's (training can hurt)."""
        return Outcome(
            metrics=self._best_rung().metrics,
            latency=self._known.latency,
            fine_tuned=len(self._rungs) > 1,
            n_params=sum(parameter.numel() for parameter in self._student.parameters()),
            n_macs=n_macs(self._student, on_device(self._worker.example_inputs, self._worker.device)),
            size_mib=self._known.size_mib,
            sparse_size_mib=self._sparse_size_mib,
            rungs=tuple(self._rungs),
            seconds=dict(self._seconds),
            parent=self._parent,
            peak_memory_mib=self._memory.mib,
        )

    def state_dict(self) -> dict[str, Any]:
        """What `restore` needs after the last rung: tensors, numbers and text only."""
        return {
            "candidate": self._plan.candidate.to_json(),
            "recipe": self._recipe.to_dict(),
            "parent": self._parent,
            "rungs": [(rung.steps, dict(rung.metrics)) for rung in self._rungs],
            "planned_rungs": list(self._training.rungs),
            "latency": dict(self._known.latency.__dict__),
            "size_mib": self._known.size_mib,
            "seconds": dict(self._seconds),
            "best": on_device(self._best, CPU),
            "fine_tune": on_device(self._fine_tune.state_dict(), CPU),
        }

    @property
    def _known(self) -> Measured:
        assert self._measured is not None, "`begin` and `restore` have set it"
        return self._measured

    @contextmanager
    def _with_best(self) -> Iterator[None]:
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

    def _best_rung(self) -> Rung:
        return self._context.objectives.best_rung(self._rungs)

    @property
    def _sparse_size_mib(self) -> float | None:
        if not self._recipe.sparse_layers:
            return None
        saved = sparse_saving_bytes(self._student, self._recipe.sparse_layers)
        return float(self._known.size_mib) - saved / _BYTES_PER_MIB

    @property
    def _worth_training(self) -> bool:
        if self._plan.polish_steps:
            return True
        if self._plan.candidate.is_baseline:
            return False
        budget = self._context.objectives.budget
        return budget is None or self._known.latency.ratio <= budget * (1 + self._context.settings.fine_tune_margin)

    def _measure(self) -> Measured:
        worker, settings = self._worker, self._context.settings
        with self._phase("export"), worker.measurement_lock.shared():
            file = export_for(
                self._context.task,
                worker.runtime,
                model_on(self._student, CPU),
                worker.example_inputs,
                worker.folder,
            )
            session = worker.runtime.load(file, settings.n_threads)
            size_mib = file.stat().st_size / _BYTES_PER_MIB
        # the reference's latency on another machine does not tell whether this one is idle
        idle_ms = self._context.objectives.reference_ms if settings.latency_resource is None else None
        with self._phase("measure"):
            timing = time_sessions(
                session,
                worker.reference,
                worker.example_inputs,
                measurement_lock=worker.measurement_lock,
                idle_ms=idle_ms,
            )
        ms = timing.ratio * self._context.objectives.reference_ms
        return Measured(Latency(timing.ratio, timing.spread, ms, timing.n_rounds), size_mib)

    def _judge(self, steps: int) -> None:
        task = self._context.task
        n_samples = None if self._plan.polish_steps else subset_size(self._training, self._worker.held_out)
        with self._phase("evaluate"):
            metrics = evaluate_model(
                self._student, task, n_samples=n_samples, lock=self._worker.measurement_lock.shared
            )
        metric = self._context.objectives.metric
        if metric not in metrics:
            raise MeasurementError(f"evaluate must give {metric!r}, but gave {sorted(metrics)}")
        self._rungs.append(Rung(steps, metrics))
        if self._best_rung() is self._rungs[-1]:
            self._best = copy.deepcopy(self._student.state_dict())

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Adds the seconds of a phase, without those spent waiting for the lock, which are counted apart."""
        lock = self._worker.measurement_lock
        begin, waited = time.perf_counter(), lock.waited
        try:
            yield
        finally:
            waiting = lock.waited - waited
            elapsed = time.perf_counter() - begin - waiting
            self._seconds[name] = self._seconds.get(name, 0.0) + elapsed
            self._seconds["wait"] = self._seconds.get("wait", 0.0) + waiting


def training_of(settings: DistillSettings, plan: TrialPlan) -> DistillSettings:
    """The fine-tune of a plan: what the candidate asks, and for a polish its own steps.

    A polish judges the whole split at each rung, its start too: what it is compared with was judged on a part of it.
    """
    settings = settings.changed(plan.candidate.fine_tune)
    if not plan.polish_steps:
        return settings
    steps = plan.polish_steps
    return replace(settings, rungs=(0, steps // 2, steps) if steps >= _LONG_POLISH else (0, steps))


def subset_size(training: DistillSettings, batches: Sequence[Batch]) -> int:
    """Samples to judge a rung of the exploration on, so that judging takes a tenth of the training's passes."""
    n_trained = training.rungs[-1] * max((n_samples(inputs) for inputs, _ in batches), default=1)
    return max(_LEAST_SUBSET, round(3 * _EVALUATION_SHARE * n_trained / len(training.rungs)))


def n_macs(model: nn.Module, inputs: Inputs) -> int:
    """Multiply-accumulates of one sample."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call_model(model, inputs)
    return int(counter.get_total_flops()) // 2 // n_samples(inputs)


def _start(worker: WorkerContext, plan: TrialPlan, trained: Sequence[TrainedFiles]) -> Start:
    """The recipe, and the student with the smallest loss on held-out training batches among the possible starts."""
    context, settings = worker.context, worker.context.settings
    stats = worker.calibration_stats
    if plan.polish_steps:  # its own student is as it was: nothing is compressed or calibrated again
        own, *trained = trained
        student, recipe = worker.student_of(own)
        starts = {own.name: student}
    else:
        recipe = resolve(
            worker.model, context.graph, plan.candidate, settings.importance, stats, settings.activation_aware
        )
        recipe = replace(
            recipe,
            rounds_before_sums=rounds_before_sums(worker.runtime),
            half_range_weights=context.half_range_weights,
        )
        whole = Parent(UNCOMPRESSED, worker.model)
        starts = {UNCOMPRESSED: student_from(whole, recipe, worker.rebuilding, stats)}
    for item in trained:
        starts[item.name] = student_from(worker.parent_of(item), recipe, worker.rebuilding)
    best = best_of(starts, context.task.loss, worker.held_out) if len(starts) > 1 else next(iter(starts))
    return Start(recipe, starts[best], best)


def _held_out(context: SearchContext) -> list[Batch]:
    return [as_batch(batch) for batch in islice(context.task.train_batches(_HELD_OUT_SEED), _N_HELD_OUT)]
