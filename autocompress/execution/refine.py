"""Trains one point longer, from the weights that its trial left: a new record, and a new point if it is good enough."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

from autocompress.distillation.fine_tune import FineTune, Teacher
from autocompress.errors import InputError
from autocompress.execution.open_run import open_run, study_of, task_of
from autocompress.execution.ray_backend import open_target_device
from autocompress.publishing.artifact import load_student, save_student
from autocompress.publishing.export_front import export_front
from autocompress.results.records import Rung, TrialRecord
from autocompress.results.run_folder import RunFolder
from autocompress.sampling.study import REFINED
from autocompress.search_context import SearchContext
from autocompress.task import Inputs, Task, call_model, check_metrics

_MAX_RUNGS = 8


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
        on_rung: told the metrics after each part of the training.

    Returns:
        The new record, with the numbers of its file if it is on the front.

    Raises:
        InputError: no such trial, or the run cannot be taken up again.
    """
    if epochs < 1:
        raise InputError(f"`epochs >= 1` must hold, but got {epochs}")
    info = folder.read_info()
    task = task_of(folder, info, task)
    with folder.locked():
        run = open_run(folder, info, task)
        study = study_of(folder, run.space, info)
        origin = trial_of(study.records(), trial)
        if origin.candidate.is_baseline:
            raise InputError(f"trial {trial} is the uncompressed model; refine a compressed one")
        student, recipe = load_student(folder.trial(origin.name), run.context.model, run.context.graph)
        begin = time.perf_counter()
        rungs = _train(student, run.context, epochs, learning_rate, on_rung)
        record = replace(
            origin,
            number=study.next_number,
            origin=REFINED,
            metrics=run.context.objectives.best_rung(rungs).metrics,
            rungs=tuple(rungs),
            fine_tuned=True,
            file=None,
            seconds={"fine-tune": time.perf_counter() - begin},
            ended=(datetime.now(UTC) - datetime.fromisoformat(info.started)).total_seconds(),
        )
        save_student(folder.trial(record.name), student, recipe)
        study.add_refined(study.judged(record))
        with open_target_device(info.settings) as target_device:
            records, _ = export_front(study.records(), run.context, folder, info, target_device)
    return next(item for item in records if item.number == record.number)


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


def _train(
    student: nn.Module,
    context: SearchContext,
    epochs: int,
    learning_rate: float | None,
    on_rung: Callable[[Rung], None],
) -> list[Rung]:
    """Judges the student before and during the training; leaves it with the best weights."""
    steps = epochs * sum(1 for _ in context.task.train_batches(context.settings.seed))
    n_rungs = min(epochs, _MAX_RUNGS)
    marks = [round(steps * (i + 1) / n_rungs) for i in range(n_rungs)]
    rate = context.settings.distill.learning_rate if learning_rate is None else learning_rate
    settings = replace(context.settings.distill, rungs=(0, *marks), learning_rate=rate)
    fine_tune = FineTune(student, Teacher(copy.deepcopy(context.model)), context.task, settings, context.settings.seed)
    rungs: list[Rung] = []
    best: dict[str, Tensor] = {}
    for mark in settings.rungs:
        fine_tune.advance(mark)
        rungs.append(Rung(mark, _judge(student, context)))
        on_rung(rungs[-1])
        if context.objectives.best_rung(rungs) is rungs[-1]:
            best = copy.deepcopy(student.state_dict())
    student.load_state_dict(best)
    return rungs


def _judge(student: nn.Module, context: SearchContext) -> dict[str, float]:
    def predict(inputs: Inputs) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = call_model(student, inputs)
        return outputs

    return check_metrics(context.task.evaluate(predict, "selection"), "selection")
