"""Searches the Pareto front of compressed models: Optuna proposes, Ray Tune runs, the study on disk is the truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from autocompress.config import SearchSettings
from autocompress.pareto import ParetoFront
from autocompress.space import SearchSpace
from autocompress.task import Task

__all__ = ["resume", "search"]


def search(
    task: Task | str,
    *,
    space: str | SearchSpace = "default",
    runtime: str = "onnxruntime",
    n_threads: int = 1,
    latency_budget: str | None = None,
    min_accuracy: float | None = None,
    n_trials: int = 40,
    minutes: float | None = None,
    n_workers: int | None = None,
    sampler: str = "tpe",
    importance: str = "l2",
    reconstruct: bool = True,
    seed: int = 0,
    ray_address: str | None = None,
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
        latency_budget: "0.5x" of the uncompressed latency, or "2.0ms"; None searches the whole front.
        min_accuracy: smallest useful value of the metric; None is half of the uncompressed model's.
        n_trials: complete or failed trials after which the search ends; the uncompressed model is the first.
        minutes: time limit of the trials; None is no limit.
        n_workers: trials at the same time; None is the number of cores.
        sampler: "tpe", "nsga2", "random" or `package.module:function`.
        importance: which channels of a group matter: "l2", "l1", "fpgm", "bn_scale", "taylor", "activation",
            "entropy", "random" or `package.module:function`.
        reconstruct: refit the layers that lost inputs by least squares on the calibration batches, before any training.
        seed: of the sampler and of the training batches.
        ray_address: of a running cluster; None starts and stops a local one.
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
            "n_trials": n_trials,
            "minutes": minutes,
            "n_workers": n_workers,
            "sampler": sampler,
            "importance": importance,
            "reconstruct": reconstruct,
            "seed": seed,
            "ray_address": ray_address,
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
    from autocompress.automl.driver import start
    from autocompress.task import load_task

    spec = _absolute(task) if isinstance(task, str) else None
    loaded = load_task(task) if isinstance(task, str) else task
    console = Console() if show_progress else None
    return start(loaded, space or settings.space, settings, run_dir, spec, console)


def resume(
    run_dir: str | Path,
    *,
    task: Task | None = None,
    n_trials: int | None = None,
    minutes: float | None = None,
    show_progress: bool = True,
) -> ParetoFront:
    """Goes on with a search that was stopped or killed; trials that were cut off run again.

    Args:
        run_dir: folder of the search.
        task: needed when the search was given a task object rather than the text that names one.
        n_trials: a new total; None keeps the old one.
        minutes: a new time limit of the trials.
        show_progress: draw a live line in the terminal.

    Raises:
        InputError: not a run folder, in use by another search, or the task's model is another one.
    """
    from autocompress.automl.driver import resume as go_on

    return go_on(Path(run_dir), task, Console() if show_progress else None, n_trials, minutes)


def _absolute(spec: str) -> str:
    """The spec of a file with its full path, so that a run can be resumed from another folder."""
    file, colon, name = spec.rpartition(":")
    return f"{Path(file).resolve()}{colon}{name}" if file.endswith(".py") else spec
