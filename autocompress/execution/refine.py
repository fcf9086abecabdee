"""Trains one point longer, from the weights that its trial left: a new record, and a new point if it is good enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice

from autocompress.errors import InputError
from autocompress.execution.open_run import open_run, task_of
from autocompress.execution.ray_backend import open_target_device
from autocompress.execution.reopened_study import reopened_study
from autocompress.execution.trial import Measured, TrainedFiles, Trial, TrialPlan, WorkerContext
from autocompress.publishing.artifact import RECIPE, WEIGHTS
from autocompress.publishing.export_front import check_points, export_front
from autocompress.results.records import Rung, TrialRecord
from autocompress.results.run_folder import RunFolder
from autocompress.sampling.study import REFINED
from autocompress.task import Task

_MAX_BATCHES = 100_000


def refine(
    folder: RunFolder,
    trial: int,
    epochs: int,
    learning_rate: float | None = None,
    task: Task | None = None,
    on_rung: Callable[[Rung], None] = lambda rung: None,
) -> TrialRecord:
    """Distills a trial's student for more epochs and adds the best of it as a record of its own.

    The structure is the trial's, so its latency is taken over; a point that enters the front is timed from its file.

    Args:
        folder: of the run.
        trial: number of a trial that did not fail.
        epochs: passes over the training batches, at least 1.
        learning_rate: peak of the schedule; None takes the search's.
        task: needed when the search was given a task object.
        on_rung: called with the metrics after each part of the training.

    Returns:
        The new record, with the numbers of its file if it is on the front.

    Raises:
        InputError: no such trial, or the run cannot be opened.
    """
    check_training(epochs, learning_rate)
    info = folder.read_info()
    task = task_of(folder, info, task)
    with folder.locked():
        run = open_run(folder, info, task)
        check_points(folder, info.model_digest)
        study = reopened_study(folder, run.space, info)
        origin = trial_of(study.records(), trial)
        if origin.candidate.is_baseline:
            raise InputError(f"trial {trial} is the uncompressed model; refine a compressed one")
        assert origin.latency is not None, "a point has a latency"
        context = run.context
        if learning_rate is not None:
            distill = replace(info.settings.distill, learning_rate=learning_rate)
            context = replace(context, settings=replace(info.settings, distill=distill))
        steps = epochs * _n_batches(task, info.settings.seed)
        plan = TrialPlan(origin.candidate, steps, Measured(origin.latency, origin.size_mib))
        worker = WorkerContext(context)
        try:
            trained = Trial.begin(worker, plan, [trained_files(folder, origin.name)])
            while not trained.done:
                trained.step()
                on_rung(trained.outcome().rungs[-1])
            outcome, files = trained.outcome(), trained.files()
        finally:
            worker.close()
        record = replace(
            origin,
            number=study.next_number,
            origin=REFINED,
            metrics=outcome.metrics,
            rungs=outcome.rungs,
            fine_tuned=True,
            file=None,
            parent=origin.name,
            seconds=outcome.seconds,
            ended=(datetime.now(UTC) - datetime.fromisoformat(info.started)).total_seconds(),
        )
        path = folder.made(folder.trial(record.name))
        for name, content in files.items():
            (path / name).write_bytes(content)
        study.add_refined(study.judged(record))
        with open_target_device(info.settings) as target_device:
            records, _ = export_front(study.records(), run.context, folder, info, target_device)
    return next(item for item in records if item.number == record.number)


def check_training(epochs: int, learning_rate: float | None) -> None:
    """Refuses what is no training.

    Raises:
        InputError: says the rule.
    """
    if epochs < 1:
        raise InputError(f"`epochs >= 1` must hold, but got {epochs}")
    if learning_rate is not None and not 0 < learning_rate < float("inf"):
        raise InputError(f"`learning_rate > 0` must hold and be finite, but got {learning_rate}")


def _n_batches(task: Task, seed: int) -> int:
    n_batches = sum(1 for _ in islice(task.train_batches(seed), _MAX_BATCHES))
    if n_batches == _MAX_BATCHES:
        raise InputError(f"an epoch of `train_batches` must end, but it gives more than {_MAX_BATCHES:,} batches")
    return n_batches


def trained_files(folder: RunFolder, name: str) -> TrainedFiles:
    """What a trial left in the run's folder."""
    path = folder.trial(name)
    return TrainedFiles(name, {file: (path / file).read_bytes() for file in (WEIGHTS, RECIPE)})


def trial_of(records: list[TrialRecord], number: int) -> TrialRecord:
    """The record of that number.

    Raises:
        InputError: there is none, or it failed.
    """
    found = next((record for record in records if record.number == number), None)
    if found is None or not found.is_point:
        state = "there is none of that number" if found is None else f"it is {found.state}"
        raise InputError(f"a trial of the run that did not fail is needed, but got {number}: {state}; see trials.jsonl")
    return found
