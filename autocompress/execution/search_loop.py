"""A search from start to front: checks, whole models, sensitivities, exploration, polish, files. Also resumes a run."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from autocompress.compression import Recipe
from autocompress.config import ALL_THAT_FIT, DistillSettings, SearchSettings
from autocompress.devices import model_on
from autocompress.errors import InputError, StoppedError, StorageError
from autocompress.evaluation import evaluate_model, judges_parts
from autocompress.execution.abort_stopper import AbortStopper
from autocompress.execution.checkpoint_callback import CheckpointCallback
from autocompress.execution.cluster_check import check_cluster
from autocompress.execution.event_log_callback import EventLogCallback
from autocompress.execution.latency_probes import SHARE as PROBE_SHARE
from autocompress.execution.latency_probes import (
    measure_latency_probes,
    read_latency_probes,
    write_latency_probes,
)
from autocompress.execution.loggers import loggers_named
from autocompress.execution.open_run import open_run, study_of, task_of
from autocompress.execution.optuna_searcher import OptunaSearcher
from autocompress.execution.planning import (
    enqueue_knapsack_front,
    enqueue_uniform,
    find_sensitivity,
    n_knapsack_candidates,
    planner_of,
)
from autocompress.execution.polish import PolishPlanner, PolishSettings
from autocompress.execution.preparation import PreparedSearch, prepare
from autocompress.execution.progress import SearchProgress, step_progress
from autocompress.execution.ray_backend import n_concurrent, open_target_device, ray_cluster, run_trials
from autocompress.execution.reopened_study import reopened_study, with_known_files
from autocompress.execution.retry_callback import RetryCallback
from autocompress.execution.run_clock import RunClock
from autocompress.execution.rung_fit import fitted_rungs, training_step_seconds
from autocompress.execution.scheduler import ParetoScheduler
from autocompress.execution.search_ends import ended_at_once, refuse_all_failed, stopped_by
from autocompress.execution.sensitivity import Effort, Sensitivity
from autocompress.execution.teacher_file import teacher_file
from autocompress.execution.trial import subset_size
from autocompress.execution.trial_queue import Limits, TrialQueue
from autocompress.execution.whole_models import judge_whole_models
from autocompress.files import check_new_folder
from autocompress.graph import without_bits
from autocompress.latency.online_predictor import OnlineLatencyPredictor
from autocompress.latency.target_device import LocalDevice, TargetDevice
from autocompress.publishing.artifact import save_student
from autocompress.publishing.engine_peer import measure_engine_peer
from autocompress.publishing.export_front import check_points, export_front
from autocompress.report.files import write_report_page
from autocompress.results.objectives import ratio
from autocompress.results.pareto import ParetoFront
from autocompress.results.provenance import imports_of, signature_of
from autocompress.results.records import WHOLE_MODEL, TrialRecord, write_records
from autocompress.results.run_folder import RunFolder, RunInfo
from autocompress.sampling.early_stopping import ParetoEarlyStopping, Patience
from autocompress.sampling.samplers import PLANNED, planned
from autocompress.sampling.study import SearchStudy
from autocompress.search_context import SearchContext, device_here, moments_of
from autocompress.space.search_space import SearchSpace
from autocompress.stop_signals import first_is_noted
from autocompress.task import Task, as_batch

_POINTS_EXPECTED = 8
_SECONDS_A_POINT = 5  # export, parity, timing, memory of a small model


def start(
    task: Task,
    space: str | SearchSpace,
    settings: SearchSettings,
    run_dir: Path,
    spec: str | None,
    console: Console | None,
) -> ParetoFront:
    """Runs a new search; see `autocompress.search`.

    Raises:
        InputError: the folder exists, or anything about the task, the space or the budget that can be known beforehand.
    """
    clock = RunClock(settings.minutes, settings.polish_share)
    folder = RunFolder(run_dir)
    if os.path.lexists(run_dir):
        continues = f"`autocompress resume {shlex.quote(str(run_dir))}` continues it"
        way_out = continues if folder.info.is_file() else "name another one"
        raise InputError(f"a new search needs a new folder, but {run_dir} exists; {way_out}")
    check_new_folder(run_dir)
    check_cluster(settings)
    _print(console, "checking the task, reading the model, timing the uncompressed model")
    for note in getattr(task, "notes", list)():
        _print(console, note)
    loggers_named(settings.loggers, folder)  # a missing package is an error before any long work
    with open_target_device(settings) as target_device:
        prepared = prepare(task, space, settings, spec, target_device)
        for note in prepared.notes:
            _print(console, note)
        predictor = _predictor_of(prepared.context)
        missing = without_bits(prepared.context.graph)
        if missing is not None:
            _print(console, missing)
        run_dir.mkdir(parents=True)
        with folder.locked():
            try:
                study = _first_files(folder, prepared, predictor)
            except BaseException:
                shutil.rmtree(run_dir, ignore_errors=True)  # half a folder would only refuse its name to the next try
                raise
            search = _Search(folder, prepared.context, prepared.info, study, predictor, clock, console, target_device)
            return search.run()


def _first_files(folder: RunFolder, prepared: PreparedSearch, predictor: OnlineLatencyPredictor) -> SearchStudy:
    """Writes what is known before any trial; `run.json` last: a folder without it is not a run yet."""
    folder.reference.write_bytes(prepared.context.reference)
    save_student(folder.trial(prepared.baseline.name), prepared.context.model, Recipe())
    study = study_of(folder, prepared.space, prepared.info, predictor.screening_ratio)
    study.add(prepared.baseline)
    write_records(folder.records, study.records())
    folder.write_info(prepared.info)
    return study


def resume(
    run_dir: Path,
    task: Task | None,
    console: Console | None,
    changes: Mapping[str, Any] | None = None,
    rebuild_study: bool = False,
) -> ParetoFront:
    """Continues a run; interrupted trials run again from their last rung. See `autocompress.resume`.

    Raises:
        InputError: not a run folder, another driver holds it, or the task's model is another one.
    """
    folder = RunFolder(run_dir)
    info = folder.read_info()
    if info.settings.n_trials == ALL_THAT_FIT and not {"n_trials", "minutes"} & set(changes or {}):
        raise InputError(f"{run_dir} was limited by its minutes, which are over; give --minutes or --trials")
    settings = replace(info.settings, **{"minutes": None, **(changes or {})})  # a time limit is one of a single start
    clock = RunClock(settings.minutes, settings.polish_share)
    check_cluster(settings)
    task = task_of(folder, info, task)
    info = replace(info, settings=settings, signature=signature_of(imports_of(info.task_spec, settings)))
    with open_target_device(settings) as target_device, folder.locked():
        run = open_run(folder, info, task)
        predictor = _predictor_of(run.context)
        check_points(folder, info.model_digest)
        study = reopened_study(folder, run.space, info, predictor.screening_ratio, rebuild_study)
        folder.write_info(info)
        n_again = study.requeue_interrupted()
        if n_again:
            _print(console, f"{n_again} trials were interrupted and run again")
        return _Search(folder, run.context, info, study, predictor, clock, console, target_device).run()


@dataclass
class _Search:
    """One start of a search, with everything at hand.

    Attributes:
        folder: of the run; its lock is held.
        context: what the trials share.
        info: of the run.
        study: asked and told.
        predictor: of latencies; learns from each trial.
        clock: of this start.
        console: where to print; None prints nothing.
        target_device: the machine that the model is for, when it is another one than this.
    """

    folder: RunFolder
    context: SearchContext
    info: RunInfo
    study: SearchStudy
    predictor: OnlineLatencyPredictor
    clock: RunClock
    console: Console | None
    target_device: TargetDevice | None

    def run(self) -> ParetoFront:
        """Runs what is left of the search, and writes the front's files."""
        study = self.study
        for probe in read_latency_probes(self.folder.latency_probes):
            self.predictor.learn_ratio(probe.candidate, probe.ratio)
        for record in study.records():
            self.predictor.learn(record)
        n_before = len(study.records())
        stop = AbortStopper()
        self.clock.end_seconds = end_seconds(self.info)
        with ray_cluster(self.info.settings):
            if study.n_finished < self.info.settings.n_trials:
                self._judge_whole_models()
                self._plan()
                self._fit_rungs()
                self._judge_baseline_on_part()
            settings = self.info.settings
            write_records(self.folder.records, with_known_files(study.records(), self.folder))
            left = self.clock.training_left
            minutes_left = None if left is None else left / 60
            progress = SearchProgress(
                study.records(), settings.n_trials, minutes_left, self.info.objectives, self.console
            )
            queue = self._queue(stop, progress)
            self.clock.begin_trials()
            begin = time.perf_counter()
            with progress, first_is_noted(self._stopped_by(stop)):
                self._run_trials(queue, stop)
            seconds, n_workers = time.perf_counter() - begin, n_concurrent(settings)
        if isinstance(stop.reason, StorageError):
            raise stop.reason  # there is no room for the front's files either
        if isinstance(stop.reason, StoppedError) and stop.reason.number != signal.SIGINT:
            raise ended_at_once(stop.reason, self.folder)
        if study.n_finished >= settings.n_trials and not study.n_open:
            CheckpointCallback(self.folder, stop, RetryCallback(lambda *lost: None)).clear()
        _print(self.console, "measuring the front's files with the workers idle")
        with step_progress(self.console, "files measured") as on_point:
            records, front = export_front(
                study.records(), self.context, self.folder, self.info, self.target_device, on_point
            )
        if stop.reason is None:
            self._measure_peer()
        _print(self.console, _busy_text(study.records()[n_before:], seconds, n_workers))
        _print_budgets(front, self.console)
        if isinstance(stop.reason, StoppedError):
            stop.reason.front = front
        if stop.reason is not None:
            raise stop.reason
        refuse_all_failed(records)
        return front

    def _stopped_by(self, stop: AbortStopper) -> Callable[[int], None]:
        return lambda number: stop.abort(stopped_by(number, self.folder, self.info.settings, self.study.n_finished))

    def _measure_peer(self) -> None:
        """Measures what the runtime's own tool gives, and writes the report anew where that is known."""
        try:
            peer = measure_engine_peer(self.context, self.folder, self.info)
        except Exception as error:  # whatever the tool raises; the front does not depend on it
            _print(self.console, f"the runtime's own 8-bit file cannot be measured: {type(error).__name__}: {error}")
            return
        if peer is not None:
            write_report_page(self.folder.read())

    def _judge_whole_models(self) -> None:
        _print(self.console, "judging the uncompressed model at the runtime's own precisions")
        for reason in judge_whole_models(self.study, self.context, self.folder):
            _print(self.console, f"  one of them cannot be judged: {reason}")

    def _plan(self) -> None:
        """Gives the default sampler its plan; measures sensitivities unless an earlier start of the run did."""
        settings, study = self.info.settings, self.study
        if settings.sampler != PLANNED:
            enqueue_uniform(study, settings.n_trials)
            return
        known = self.folder.sensitivity.is_file()
        self._probe_latencies(known)
        if known:
            sensitivity = Sensitivity.read(self.folder.sensitivity)
        else:
            seconds = self.clock.sensitivity_seconds
            until = None if seconds is None else time.monotonic() + seconds
            with step_progress(self.console, "choices judged alone") as on_choice:
                effort = Effort(n_concurrent(settings), until, on_choice)
                sensitivity = find_sensitivity(self.context, study.space, effort)
        study.use(planned(planner_of(study, sensitivity, self.predictor), settings.seed))
        if not known:
            n_points = n_knapsack_candidates(settings.n_trials)
            enqueue_knapsack_front(study, sensitivity, self.predictor, n_points)
            sensitivity.write(self.folder.sensitivity)  # last: without it all this is done again

    def _probe_latencies(self, planned: bool) -> None:
        """Teaches the latency model with a few timed candidates before the solver plans with it."""
        settings = self.info.settings
        if planned or settings.latency_model is not None or self.folder.latency_probes.is_file():
            return
        seconds = None if self.clock.seconds is None else PROBE_SHARE * self.clock.seconds
        device = self.target_device or LocalDevice(settings.runtime, settings.n_threads)
        with step_progress(self.console, "latencies probed") as on_probe:
            probes = list(measure_latency_probes(self.context, self.study.space, device, seconds, on_probe))
        for probe in probes:
            self.predictor.learn_ratio(probe.candidate, probe.ratio)
        write_latency_probes(self.folder.latency_probes, probes)

    def _fit_rungs(self) -> None:
        """Shortens the exploration's fine-tunes at a run's first start, where few would fit into the minutes."""
        settings, seconds = self.info.settings, self.clock.training_left
        rungs = settings.distill.rungs
        explored = any(record.origin not in ("baseline", WHOLE_MODEL) for record in self.study.records())
        if seconds is None or explored or rungs != DistillSettings().rungs:
            return
        seconds *= 1 - settings.polish_share
        judged = [sum(record.seconds.values()) for record in self.study.records() if record.origin == WHOLE_MODEL]
        step = training_step_seconds(self.context)
        fitted = fitted_rungs(rungs, step, max(judged, default=0.0), seconds, n_concurrent(settings))
        if fitted == rungs:
            return
        _print(self.console, f"fine-tunes of new candidates take {fitted[-1]} steps, so that more of them fit")
        settings = replace(settings, distill=replace(settings.distill, rungs=fitted))
        self.info = replace(self.info, settings=settings)
        self.context = replace(self.context, settings=settings)
        self.folder.write_info(self.info)

    def _judge_baseline_on_part(self) -> None:
        """Judges the uncompressed model as new candidates are judged, so that they can be compared."""
        task = self.context.task
        if self.info.baseline_part or not judges_parts(task):
            return
        batch = as_batch(next(iter(task.train_batches(self.info.settings.seed))))
        n_samples = subset_size(self.info.settings.distill, [batch])
        model = model_on(self.context.model, device_here(self.info.settings))
        self.info = replace(self.info, baseline_part=evaluate_model(model, task, n_samples=n_samples))
        self.folder.write_info(self.info)

    def _queue(self, stop: AbortStopper, progress: SearchProgress) -> TrialQueue:
        settings, objectives = self.info.settings, self.info.objectives
        began = datetime.fromisoformat(self.info.started)

        def on_ended(record: TrialRecord) -> None:
            self.predictor.learn(record)
            progress.finished(record)

        steps = settings.polish_steps
        if steps is None and settings.minutes is None:
            steps = 4 * settings.distill.rungs[-1]
        top = self.info.baseline_part.get(objectives.metric)
        polish = PolishSettings(settings.polish_points, steps, n_concurrent(settings), top)
        patience = None if settings.patience is None else Patience(settings.patience, objectives)
        return TrialQueue(
            self.study,
            self.folder.records,
            Limits(self.clock, settings.n_trials - self.study.n_finished, patience, settings.inherit_weights),
            stop,
            PolishPlanner(objectives, polish, self.clock),
            self.predictor.predicted,
            lambda: (datetime.now(UTC) - began).total_seconds(),
            on_ended,
        )

    def _run_trials(self, queue: TrialQueue, stop: AbortStopper) -> None:
        settings = self.info.settings
        searcher = OptunaSearcher(queue)
        retries = RetryCallback(searcher.on_trial_lost)
        further = [EventLogCallback(self.folder.events, stop, retries), *loggers_named(settings.loggers, self.folder)]
        checkpoints = CheckpointCallback(self.folder, stop, retries, further)
        scheduler = None
        if settings.early_stopping:
            stopping = ParetoEarlyStopping(self.info.objectives)
            stopping.learn(self.study.explored())
            scheduler = ParetoScheduler(stopping, self.info.objectives.metric)
        moments = moments_of(self.context, self.study.space)
        context = replace(self.context, moments=moments, teacher_file=teacher_file(self.context))
        run_trials(searcher, context, stop, [checkpoints, retries], scheduler, self.clock.training_left)
        searcher.on_experiment_end()


def end_seconds(info: RunInfo) -> float:
    """What the front's files will take to be measured: each, and the uncompressed one, is run on two splits.

    Points, and the file of the runtime's own tool, are expected to take half of the uncompressed model's time.
    """
    settings = info.settings
    n_points = 1 + (settings.polish_points or _POINTS_EXPECTED)
    passes = 1 + n_points / 2
    return passes * 2 * info.n_selection * info.objectives.reference_ms / 1000 + (1 + n_points) * _SECONDS_A_POINT


def _print_budgets(front: ParetoFront, console: Console | None) -> None:
    """The best point of each budget, where there are several: one front serves all."""
    objectives = front.objectives
    budgets = objectives.latency_budgets
    for budget in budgets if len(budgets) > 1 else ():
        within = [point for point in front.points if ratio(point) <= budget]
        best = max(within, key=objectives.gain_of, default=None)
        found = "none" if best is None else f"{best.name}, {objectives.metric} {objectives.score_of(best):.4f}"
        _print(console, f"within {budget:.3g}x: {found}")


def _busy_text(records: list[TrialRecord], seconds: float, n_workers: int) -> str:
    spent = sum(sum(record.seconds.values()) for record in records)
    return f"trials took {seconds:.0f} s; workers were busy for {100 * spent / (seconds * n_workers):.0f} % of it"


def _print(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, style="dim")


def _predictor_of(context: SearchContext) -> OnlineLatencyPredictor:
    return OnlineLatencyPredictor.of(context.settings, context.task, context.graph)
