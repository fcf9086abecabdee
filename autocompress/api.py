"""Searches the Pareto front of compressed models: asks `proposing` what is next, runs it on Ray, writes the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from autocompress.config import CHANGEABLE, SearchSettings, refuse_unknown_keys
from autocompress.results.pareto import ParetoFront
from autocompress.space.search_space import SearchSpace
from autocompress.task import Task
from autocompress.tasks.identifiers import is_task_id, read_task_id

__all__ = ["resume", "search"]


def search(
    task: Task | str,
    *,
    space: str | SearchSpace = "default",
    runtime: str = "onnxruntime",
    n_threads: int = 1,
    latency_budget: str | None = None,
    size_budget_mib: float | None = None,
    memory_budget_mib: float | None = None,
    min_accuracy: float | None = None,
    n_trials: int | None = None,
    minutes: float | None = None,
    n_workers: int | None = None,
    cpus_per_trial: float = 1.0,
    gpus_per_trial: float = 0.0,
    trial_minutes: float | None = None,
    trial_retries: int = 3,
    patience: int | None = None,
    sampler: str = "solver",
    sensitivity: str = "measured",
    early_stopping: bool = True,
    importance: str = "l2",
    latency_model: str | None = None,
    force_latency_model: bool = False,
    reconstruct: bool = True,
    seed: int = 0,
    ray_address: str | None = None,
    latency_resource: str | None = None,
    dashboard: bool = False,
    loggers: Sequence[str] = (),
    distill: Mapping[str, Any] | None = None,
    run_dir: str | Path,
    show_progress: bool = True,
) -> ParetoFront:
    """Searches compressed versions of a task's model and writes the front as files that run.

    Args:
        task: see `autocompress.Task` (it travels to worker processes by cloudpickle), or the text that names one for
            `load_task`, such as "digits" or "my_model.py:task".
        space: name of a file in `search_spaces/`, path of a YAML file, or a `SearchSpace`.
        runtime: name of the target runtime.
        n_threads: threads the target runtime may use.
        latency_budget: "0.5x" of the uncompressed latency, or "2.0ms"; several with commas, of which the largest bounds
            the search; None searches the whole front.
        size_budget_mib: largest size of the runtime's file.
        memory_budget_mib: most memory that running a file of the front may take.
        min_accuracy: smallest useful value of the metric; None is half of the uncompressed model's.
        n_trials: complete, stopped or failed trials after which the search ends; the uncompressed model is the first.
            None is 40, or with `minutes` as many as fit.
        minutes: time limit of the trials; None is no limit.
        n_workers: trials at the same time; None is as many as there are CPUs for.
        cpus_per_trial: CPUs that a trial reserves of its machine, fractions too.
        gpus_per_trial: GPUs, likewise.
        trial_minutes: limit of one trial, which fails beyond it; None is no limit.
        trial_retries: how often a trial is started again after its worker or its machine died.
        patience: trials without a larger hypervolume after which the search ends; None uses all trials and minutes.
        sampler: "solver", "tpe", "nsga2", "random" or `package.module:function` of a seed that makes an Optuna sampler.
        sensitivity: how "solver" learns what each choice costs: "measured", or "fisher", a quick estimate.
        early_stopping: whether fine-tunes end at a rung where too many trials are better in both objectives.
        importance: which channels of a group matter: "l2", "l1", "fpgm", "bn_scale", "taylor", "activation",
            "entropy", "random" or `package.module:function`.
        latency_model: path of a profile of the target device (see `profile`): candidates whose predicted latency
            misses the budget at the upper end of its interval are not tried.
        force_latency_model: take a profile of another runtime version, device or batch all the same.
        reconstruct: refit the layers that lost inputs by least squares on the calibration batches, before any training.
        seed: of the sampler and of the training batches.
        ray_address: of a running cluster, or "auto"; None starts and stops a local one.
        latency_resource: the Ray resource of the machine that the model is for; files are timed and judged there.
        dashboard: whether a local Ray shows its dashboard, on the loopback address.
        loggers: where trials are also logged: "tensorboard", "mlflow", "wandb".
        distill: settings of the fine-tune by name, see `autocompress.config.DistillSettings`.
        run_dir: new folder for everything that the search writes.
        show_progress: draw a live line in the terminal.

    Returns:
        The front; each point's `.file` holds what was measured from its exported file.

    Raises:
        InputError: anything that can be known to be wrong before the first trial; nothing is written then.
    """
    settings = SearchSettings.from_dict(
        {
            "space": space if isinstance(space, str) else space.name,
            "runtime": runtime,
            "n_threads": n_threads,
            "latency_budget": latency_budget,
            "min_accuracy": min_accuracy,
            "size_budget_mib": size_budget_mib,
            "memory_budget_mib": memory_budget_mib,
            "n_trials": n_trials,
            "patience": patience,
            "sensitivity": sensitivity,
            "early_stopping": early_stopping,
            "minutes": minutes,
            "n_workers": n_workers,
            "cpus_per_trial": cpus_per_trial,
            "gpus_per_trial": gpus_per_trial,
            "trial_minutes": trial_minutes,
            "trial_retries": trial_retries,
            "sampler": sampler,
            "importance": importance,
            "latency_model": latency_model,
            "force_latency_model": force_latency_model,
            "reconstruct": reconstruct,
            "seed": seed,
            "ray_address": ray_address,
            "latency_resource": latency_resource,
            "dashboard": dashboard,
            "loggers": tuple(loggers),
            "distill": dict(distill or {}),
        }
    )
    return run_new(task, settings, Path(run_dir), space=space, show_progress=show_progress)


def run_new(
    task: Task | str,
    settings: SearchSettings,
    run_dir: Path,
    *,
    space: str | SearchSpace | None = None,
    show_progress: bool = True,
) -> ParetoFront:
    """As `search`, with the settings in one object; `space` replaces the one that they name."""
    from autocompress.execution.search_loop import start
    from autocompress.task import load_task

    spec = _absolute(task) if isinstance(task, str) else getattr(task, "spec", None)
    loaded = load_task(task) if isinstance(task, str) else task
    console = Console() if show_progress else None
    return start(loaded, space or settings.space, settings, run_dir, spec, console)


def resume(
    run_dir: str | Path,
    *,
    task: Task | None = None,
    show_progress: bool = True,
    **changes: Any,
) -> ParetoFront:
    """Goes on with a search that was stopped or killed; trials that were cut off go on from their last rung.

    Args:
        run_dir: folder of the search.
        task: needed when the search was given a task object rather than the text that names one.
        show_progress: draw a live line in the terminal.
        changes: settings that may differ from the first start's: n_trials (a new total), minutes (a limit of this
            start), n_workers, cpus_per_trial, gpus_per_trial, trial_minutes, trial_retries, ray_address, dashboard.

    Raises:
        InputError: not a run folder, in use by another search, the task's model is another one, or a setting that
            cannot change.
    """
    from autocompress.execution.search_loop import resume as go_on

    refuse_unknown_keys("resume", changes, list(CHANGEABLE))
    return go_on(Path(run_dir), task, Console() if show_progress else None, changes)


def _absolute(spec: str) -> str:
    """The spec of a file or an id with full paths, so that a run can be resumed from another folder."""
    if is_task_id(spec):
        return read_task_id(spec).text()
    file, colon, name = spec.rpartition(":")
    return f"{Path(file).resolve()}{colon}{name}" if file.endswith(".py") else spec
