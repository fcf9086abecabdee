"""A search from start to front: checks everything first, then trials, then the front as files. Also goes on with a run."""

from __future__ import annotations

import copy
import fcntl
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from autocompress.artifact import model_digest, save_student
from autocompress.candidate import Candidate
from autocompress.compress import Recipe, compress
from autocompress.config import SearchSettings
from autocompress.errors import InputError
from autocompress.export import Runtime, runtime_named
from autocompress.graph import ModelGraph, inspect_model
from autocompress.latency import Turns, time_pair
from autocompress.machine import describe_machine, describe_versions
from autocompress.pareto import ParetoFront, budget_ratio
from autocompress.records import Latency, TrialRecord, write_records
from autocompress.report.files import write_front_table, write_report
from autocompress.run_folder import RunFolder, RunInfo
from autocompress.search.asker import StudySearcher
from autocompress.search.bench import Job, n_macs
from autocompress.search.engine import run_trials
from autocompress.search.finalists import finalize
from autocompress.search.progress import SearchProgress
from autocompress.search.samplers import sampler_named
from autocompress.search.study import SearchStudy
from autocompress.space import Knob, SearchSpace
from autocompress.task import Inputs, Task, as_inputs, call_model, check_metrics, check_task, load_task

_BYTES_PER_MIB = 2**20
_REFERENCE_ROUNDS = 15
_UNIFORM_SHARE = 3  # at most one trial in three is a uniform candidate


@dataclass(frozen=True)
class _Checked:
    """What is known before any trial."""

    job: Job
    space: SearchSpace
    info: RunInfo
    baseline: TrialRecord


def start(
    task: Task, space: str | SearchSpace, settings: SearchSettings, run_dir: Path, spec: str | None, console: Console | None
) -> ParetoFront:
    """Runs a new search; see `autocompress.search`.

    Raises:
        InputError: the folder exists, or anything about the task, the space or the budget that can be known beforehand.
    """
    if run_dir.exists():
        raise InputError(f"a new search needs a new folder, but {run_dir} exists; `autocompress resume {run_dir}` goes on with it")
    folder = RunFolder(run_dir)
    _say(console, "checking the task, reading the model, timing the uncompressed model")
    runtime = runtime_named(settings.runtime)
    sampler_named(settings.sampler, settings.seed)
    if settings.latency_budget is not None:
        budget_ratio(settings.latency_budget, 1.0)
    check_task(task)
    checked, reference = _prepare(task, space, settings, runtime, spec, folder)
    run_dir.mkdir(parents=True)
    with _locked(folder):
        folder.reference.write_bytes(reference)
        save_student(folder.trial(checked.baseline.name), checked.job.model, Recipe())
        study = _study(folder, checked)
        study.enqueue([checked.baseline.candidate], "baseline")
        study.ask()
        study.tell(checked.baseline)
        study.enqueue(_uniform_candidates(checked.space, settings.n_trials), "uniform")
        folder.write_info(checked.info)  # last: a folder without it is not a run yet
        return _go_on(folder, checked, study, console)


def resume(
    run_dir: Path,
    task: Task | None,
    console: Console | None,
    n_trials: int | None = None,
    minutes: float | None = None,
) -> ParetoFront:
    """Goes on with a run; trials that were cut off run again. See `autocompress.resume`.

    Raises:
        InputError: not a run folder, another driver holds it, or the task's model is another one.
    """
    folder = RunFolder(run_dir)
    info = folder.read_info()
    if n_trials is not None or minutes is not None:
        settings = replace(info.settings, n_trials=n_trials or info.settings.n_trials, minutes=minutes)
        info = replace(info, settings=settings)
    if task is None:
        if info.task_spec is None:
            raise InputError(f"the task of {run_dir} was given as an object; resume from Python: autocompress.resume(run, task=task)")
        task = load_task(info.task_spec)
    model = task.build_model()
    if model_digest(model) != info.model_digest:
        raise InputError(f"{run_dir} searched another model (or other weights) than the task gives now; start a new search")
    with _locked(folder):
        folder.write_info(info)
        graph = inspect_model(model, as_inputs(task.example_inputs()))
        job = _job(task, model, graph, folder, info)
        knobs = tuple(Knob(knob["kind"], knob["target"], tuple(knob["choices"])) for knob in info.knobs)
        space = SearchSpace(knobs, info.settings.space)
        if space.digest != info.space_digest:
            raise InputError(f"{folder.info} was edited: the knobs do not match their digest")
        checked = _Checked(job, space, info, TrialRecord(0, "complete", "baseline", Candidate()))
        study = _study(folder, checked)
        n_again = study.requeue_interrupted()
        if n_again:
            _say(console, f"{n_again} trials were cut off and run again")
        return _go_on(folder, checked, study, console)


def _prepare(
    task: Task, space: str | SearchSpace, settings: SearchSettings, runtime: Runtime, spec: str | None, folder: RunFolder
) -> tuple[_Checked, bytes]:
    model, inputs = task.build_model().eval(), as_inputs(task.example_inputs())
    graph = inspect_model(model, inputs)
    if isinstance(space, str):
        space = SearchSpace.load(space, graph)
    if not space.knobs:
        raise InputError(
            f"the space {space.name!r} leaves nothing to search in this model; "
            "offer more choices (channel counts are multiples of channel_grid), or look at `autocompress inspect`"
        )
    metrics = _judge(model, task)
    metric = next(iter(getattr(task, "objectives", ()) or metrics))
    if metric not in metrics:
        raise InputError(f"the task's objectives must be figures that evaluate gives, but {metric!r} is not in {sorted(metrics)}")
    with _scratch() as scratch:
        file = runtime.export(model, inputs, scratch)
        reference = file.read_bytes()
        session = runtime.load(file, settings.n_threads)
        fed = session.prepare(inputs)
        with Turns().measure():
            timing = time_pair(lambda: session.run(fed), lambda: session.run(fed), _REFERENCE_ROUNDS)
        budget = None if settings.latency_budget is None else budget_ratio(settings.latency_budget, timing.reference_ms)
        info = _info(task, spec, settings, metric, model, graph, space, timing.reference_ms, budget)
        job = replace(_job(task, model, graph, folder, info, reference))
        if budget is not None:
            _check_reachable(job, space, runtime, scratch)
    baseline = TrialRecord(
        number=0,
        state="complete",
        origin="baseline",
        candidate=space.baseline(),
        metrics=metrics,
        latency=Latency(1.0, timing.spread, timing.reference_ms, timing.n_rounds),
        feasible=budget is None or budget >= 1.0,
        n_params=graph.n_params,
        n_macs=n_macs(model, inputs),
        size_mib=len(reference) / _BYTES_PER_MIB,
    )
    return _Checked(job, space, info, baseline), reference


def _go_on(folder: RunFolder, checked: _Checked, study: SearchStudy, console: Console | None) -> ParetoFront:
    info, job = checked.info, checked.job
    settings = info.settings
    records = study.records()
    write_records(folder.records, records)
    began = datetime.fromisoformat(info.started)
    begin = time.perf_counter()
    progress = SearchProgress(
        records, settings.n_trials, settings.minutes, info.metric, info.budget_ratio, info.reference_ms, console
    )
    searcher = StudySearcher(
        study, folder.records, lambda: (datetime.now(UTC) - began).total_seconds(), progress.finished
    )
    n_more = settings.n_trials - study.n_finished
    if n_more > 0:
        with progress:
            run_trials(searcher, job, n_more, folder.path / "ray")
    seconds = time.perf_counter() - begin
    _say(console, "measuring the front's files with the workers idle")
    facts = {
        "task": info.task,
        "runtime": settings.runtime,
        "n_threads": settings.n_threads,
        "uncompressed": {"digest": info.model_digest, "n_params": job.graph.n_params, "latency_ms": info.reference_ms},
        "machine": dict(info.machine),
        "versions": dict(info.versions),
    }
    records, front = finalize(study.records(), job, folder, facts)
    write_records(folder.records, records)
    run = folder.read()
    write_front_table(run)
    write_report(run)
    if n_more > 0:
        _say(console, _overhead(records, seconds, settings))
    return front


def _overhead(records: list[TrialRecord], seconds: float, settings: SearchSettings) -> str:
    n_workers = settings.n_workers or os.cpu_count() or 1
    spent = sum(sum(record.seconds.values()) for record in records)
    return f"trials took {seconds:.0f} s; workers were at work for {100 * spent / (seconds * n_workers):.0f} % of it"


def _check_reachable(job: Job, space: SearchSpace, runtime: Runtime, scratch: Path) -> None:
    """Builds and times the strongest candidates, untrained; one within the budget is enough."""
    assert job.budget is not None
    inputs = as_inputs(job.task.example_inputs())
    calibration = [as_inputs(batch) for batch in job.task.calibration_batches()][:1]
    reference = runtime.load(_written(scratch / "reference", job.reference), job.settings.n_threads)
    reference_fed = reference.prepare(inputs)
    fastest: tuple[float, Candidate] | None = None
    for candidate in _strongest_candidates(space):
        student = compress(job.model, candidate, inputs, calibration, graph=job.graph)
        session = runtime.load(runtime.export(student, inputs, scratch), job.settings.n_threads)
        fed = session.prepare(inputs)
        with Turns().measure():
            ratio = time_pair(lambda: session.run(fed), lambda: reference.run(reference_fed), n_rounds=5).ratio  # noqa: B023
        if ratio <= job.budget:
            return
        if fastest is None or ratio < fastest[0]:
            fastest = ratio, candidate
    assert fastest is not None
    raise InputError(
        f"the budget {job.settings.latency_budget} is out of reach: of the strongest candidates of space {space.name!r} the "
        f"fastest takes {fastest[0]:.3g}x ({fastest[0] * job.reference_ms:.3g}ms) of the uncompressed "
        f"{job.reference_ms:.3g}ms; raise the budget or offer stronger choices"
    )


def _strongest_candidates(space: SearchSpace) -> list[Candidate]:
    """The extremes: every knob at its last resort, with and without 8 bits and low rank."""
    extreme = {knob.name: max(knob.choices, key=_strength) for knob in space.knobs}
    kinds = ({"prune_ratio", "drop", "weight_bits"}, {"prune_ratio", "drop"}, {"prune_ratio", "drop", "weight_bits", "rank_ratio"})
    chosen = [
        space.candidate({knob.name: extreme[knob.name] for knob in space.knobs if knob.kind in kind}) for kind in kinds
    ]
    return list({candidate.digest: candidate for candidate in chosen}.values())


def _strength(choice: Any) -> float:
    """Larger is stronger: high prune ratios and drops, low ranks and bits."""
    if choice is None:
        return -1e9
    return float(choice) if isinstance(choice, bool) or choice == 0 or choice < 1 else -float(choice)


def _uniform_candidates(space: SearchSpace, n_trials: int) -> list[Candidate]:
    """Uniform candidates from mild to strong, 8 bits first; at most a third of the trials."""
    grid = [(prune, rank, bits) for bits in (8, 32) for rank in (None, 0.5) for prune in (0.0, 0.25, 0.5)]
    chosen = [space.uniform(prune_ratio=prune, rank_ratio=rank, weight_bits=bits) for prune, rank, bits in grid]
    unique = {candidate.digest: candidate for candidate in chosen if not candidate.is_baseline}
    return list(unique.values())[: max(1, n_trials // _UNIFORM_SHARE)]


def _study(folder: RunFolder, checked: _Checked) -> SearchStudy:
    settings = checked.info.settings
    sampler = sampler_named(settings.sampler, settings.seed)
    return SearchStudy(folder.study, checked.space, sampler, checked.info.metric, checked.info.budget_ratio)


def _job(
    task: Task, model: nn.Module, graph: ModelGraph, folder: RunFolder, info: RunInfo, reference: bytes | None = None
) -> Job:
    return Job(
        task=task,
        model=copy.deepcopy(model).eval(),
        graph=graph,
        settings=info.settings,
        reference=folder.reference.read_bytes() if reference is None else reference,
        reference_ms=info.reference_ms,
        budget=info.budget_ratio,
        metric=info.metric,
        trials=(folder.path / "trials").resolve(),
    )


def _info(
    task: Task,
    spec: str | None,
    settings: SearchSettings,
    metric: str,
    model: nn.Module,
    graph: ModelGraph,
    space: SearchSpace,
    reference_ms: float,
    budget: float | None,
) -> RunInfo:
    layers = tuple(
        {"path": layer.path, "kind": layer.kind, "n_params": layer.n_params, "n_macs": layer.n_macs} for layer in graph.layers
    )
    return RunInfo(
        task=spec or str(getattr(task, "name", type(task).__name__)),
        task_spec=spec,
        settings=replace(settings, space=space.name) if settings.space != space.name else settings,
        metric=metric,
        model_digest=model_digest(model),
        space_digest=space.digest,
        reference_ms=reference_ms,
        budget_ratio=budget,
        layers=layers,
        knobs=tuple({"kind": k.kind, "target": k.target, "choices": list(k.choices)} for k in space.knobs),
        frozen=tuple({"name": f.name, "what": f.what, "reason": f.reason} for f in graph.frozen),
        machine=describe_machine(),
        versions=describe_versions(),
        command=" ".join(Path(arg).name if i == 0 else arg for i, arg in enumerate(sys.argv)),
        started=datetime.now(UTC).isoformat(),
    )


def _judge(model: nn.Module, task: Task) -> dict[str, float]:
    def predict(inputs: Inputs) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = call_model(model, inputs)
        return outputs

    return check_metrics(task.evaluate(predict, "selection"), "selection")


@contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    """One driver a run; the kernel drops the lock of a killed one."""
    with folder.lock.open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{folder.path} is in use by another search; wait for it, or stop it") from None
        yield


@contextmanager
def _scratch() -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="autocompress-") as name:
        yield Path(name)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, style="dim")
