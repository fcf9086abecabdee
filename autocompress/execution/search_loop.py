"""A search from start to front: checks first, then trials, then the front as files. Also goes on with a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from autocompress.compression import Recipe
from autocompress.config import ALL_THAT_FIT, SearchSettings
from autocompress.errors import InputError, StorageError
from autocompress.execution.abort_stopper import AbortStopper
from autocompress.execution.checkpoint_callback import CheckpointCallback
from autocompress.execution.event_log_callback import EventLogCallback
from autocompress.execution.loggers import loggers_named
from autocompress.execution.open_run import open_run, study_of, task_of
from autocompress.execution.optuna_searcher import OptunaSearcher
from autocompress.execution.planning import (
    OnlineLatencyPredictor,
    enqueue_knapsack_front,
    enqueue_uniform,
    find_sensitivity,
    n_knapsack_candidates,
    planner_of,
)
from autocompress.execution.preparation import prepare
from autocompress.execution.progress import SearchProgress
from autocompress.execution.ray_backend import n_concurrent, open_target_device, ray_cluster, run_trials
from autocompress.execution.retry_callback import RetryCallback
from autocompress.execution.scheduler import ParetoScheduler
from autocompress.execution.sensitivity import Sensitivity
from autocompress.execution.target_device import Device
from autocompress.execution.trial import SearchContext, moments_of
from autocompress.publishing.artifact import save_student
from autocompress.publishing.export_front import export_front
from autocompress.results.pareto import ParetoFront, budget_ratios, ratio, score
from autocompress.results.records import TrialRecord, write_records
from autocompress.results.run_folder import RunFolder, RunInfo
from autocompress.sampling.early_stopping import ParetoEarlyStopping
from autocompress.sampling.patience import Patience
from autocompress.sampling.samplers import PLANNED, planned
from autocompress.sampling.study import SearchStudy
from autocompress.space.search_space import SearchSpace
from autocompress.task import Task


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
    folder = RunFolder(run_dir)
    if run_dir.exists():
        way_out = f"`autocompress resume {run_dir}` goes on with it" if folder.info.is_file() else "name another one"
        raise InputError(f"a new search needs a new folder, but {run_dir} exists; {way_out}")
    _say(console, "checking the task, reading the model, timing the uncompressed model")
    for note in getattr(task, "notes", list)():
        _say(console, note)
    loggers_named(settings.loggers, folder)  # a missing package is an error before any long work
    with open_target_device(settings) as target_device:
        prepared = prepare(task, space, settings, spec, target_device)
        run_dir.mkdir(parents=True)
        with folder.locked():
            folder.reference.write_bytes(prepared.context.reference)
            save_student(folder.trial(prepared.baseline.name), prepared.context.model, Recipe())
            latency_predictor = OnlineLatencyPredictor.of(prepared.context)
            study = study_of(folder, prepared.space, prepared.info, latency_predictor.screening_ratio)
            study.add(prepared.baseline)
            if settings.sampler != PLANNED:
                enqueue_uniform(study, settings.n_trials)
            folder.write_info(prepared.info)  # last: a folder without it is not a run yet
            return _go_on(folder, prepared.context, prepared.info, study, latency_predictor, console, target_device)


def resume(
    run_dir: Path,
    task: Task | None,
    console: Console | None,
    changes: Mapping[str, Any] | None = None,
) -> ParetoFront:
    """Goes on with a run; trials that were cut off run again. See `autocompress.resume`.

    Raises:
        InputError: not a run folder, another driver holds it, or the task's model is another one.
    """
    folder = RunFolder(run_dir)
    info = folder.read_info()
    if info.settings.n_trials == ALL_THAT_FIT and not {"n_trials", "minutes"} & set(changes or {}):
        raise InputError(f"{run_dir} was limited by its minutes, which are over; give --minutes or --trials")
    settings = replace(info.settings, **{"minutes": None, **(changes or {})})  # a time limit is one of a single start
    info = replace(info, settings=settings)
    task = task_of(folder, info, task)
    with open_target_device(settings) as target_device, folder.locked():
        run = open_run(folder, info, task)
        folder.write_info(info)
        latency_predictor = OnlineLatencyPredictor.of(run.context)
        study = study_of(folder, run.space, info, latency_predictor.screening_ratio)
        n_again = study.requeue_interrupted()
        if n_again:
            _say(console, f"{n_again} trials were cut off and run again")
        return _go_on(folder, run.context, info, study, latency_predictor, console, target_device)


def _go_on(
    folder: RunFolder,
    context: SearchContext,
    info: RunInfo,
    study: SearchStudy,
    latency_predictor: OnlineLatencyPredictor,
    console: Console | None,
    target_device: Device | None,
) -> ParetoFront:
    settings = info.settings
    records = study.records()
    n_before = len(records)
    write_records(folder.records, records)
    began = datetime.fromisoformat(info.started)
    begin = time.perf_counter()
    progress = SearchProgress(
        records,
        settings.n_trials,
        settings.minutes,
        info.metric,
        info.budget_ratio,
        info.reference_ms,
        console,
        info.min_score,
    )
    for record in records:
        latency_predictor.learn(record)
    stopping = ParetoEarlyStopping(info.budget_ratio) if settings.early_stopping else None
    if stopping is not None:
        stopping.learn(records, info.metric)
    patience = None
    if settings.patience is not None:
        patience = Patience(settings.patience, info.metric, info.budget_ratio, info.min_score)

    def finished(record: TrialRecord) -> None:
        latency_predictor.learn(record)
        progress.finished(record)

    stop = AbortStopper()
    n_more = settings.n_trials - study.n_finished
    searcher = OptunaSearcher(
        study,
        folder.records,
        lambda: (datetime.now(UTC) - began).total_seconds(),
        finished,
        stop,
        stopping,
        patience,
        latency_predictor.predicted,
        n_more,
    )
    retries = RetryCallback(searcher.on_trial_lost)
    events, checkpoints = EventLogCallback(folder.events, stop, retries), CheckpointCallback(folder, stop, retries)
    n_workers = 1
    if n_more > 0:
        shared = replace(context, moments=moments_of(context, study.space))
        with ray_cluster(settings):
            n_workers = n_concurrent(settings)
            if settings.sampler == PLANNED:
                _plan(folder, context, study, latency_predictor, n_workers, console)
            callbacks = [checkpoints, events, retries, *loggers_named(settings.loggers, folder)]
            scheduler = None if stopping is None else ParetoScheduler(stopping, info.metric)
            begin = time.perf_counter()
            with progress:
                run_trials(searcher, shared, stop, callbacks, scheduler)
    seconds = time.perf_counter() - begin
    if isinstance(stop.reason, StorageError):
        raise stop.reason  # there is no room for the front's files either
    if study.n_finished >= settings.n_trials:
        checkpoints.clear()
    _say(console, "measuring the front's files with the workers idle")
    records, front = export_front(study.records(), context, folder, info, target_device=target_device)
    if n_more > 0:
        _say(console, _share_at_work(records[n_before:], seconds, n_workers))
    _say_budgets(front, settings, info, console)
    if stop.reason is not None:
        raise stop.reason
    return front


def _say_budgets(front: ParetoFront, settings: SearchSettings, info: RunInfo, console: Console | None) -> None:
    """The best point of each budget, where there are several: one front serves all."""
    budgets = budget_ratios(settings.latency_budget or "1x", info.reference_ms)
    for budget in budgets if len(budgets) > 1 else ():
        within = [point for point in front.points if ratio(point) <= budget]
        best = max(within, key=lambda point: score(point, info.metric), default=None)
        found = "none" if best is None else f"{best.name}, {info.metric} {score(best, info.metric):.4f}"
        _say(console, f"within {budget:.3g}x: {found}")


def _share_at_work(records: list[TrialRecord], seconds: float, n_workers: int) -> str:
    spent = sum(sum(record.seconds.values()) for record in records)
    return f"trials took {seconds:.0f} s; workers were at work for {100 * spent / (seconds * n_workers):.0f} % of it"


def _plan(
    folder: RunFolder,
    context: SearchContext,
    study: SearchStudy,
    latency_predictor: OnlineLatencyPredictor,
    n_workers: int,
    console: Console | None,
) -> None:
    """Gives the default sampler its plan; measures what each choice costs unless an earlier start of the run did."""
    known = folder.sensitivity.is_file()
    if not known:
        _say(console, "judging each choice alone on calibration data")
    sensitivity = Sensitivity.read(folder.sensitivity) if known else find_sensitivity(context, study.space, n_workers)
    study.use(planned(planner_of(study, sensitivity, latency_predictor), context.settings.seed))
    if not known:
        enqueue_knapsack_front(study, sensitivity, latency_predictor, n_knapsack_candidates(context.settings.n_trials))
        sensitivity.write(folder.sensitivity)  # last: without it all this is done again


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, style="dim")
