"""The Python interface: `search` and `resume`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Unpack

from rich.console import Console

from autocompress.config import CHANGEABLE, ChangeableDict, SearchSettings, SettingsDict
from autocompress.errors import StoppedError
from autocompress.results.pareto import ParetoFront
from autocompress.results.provenance import require_trust
from autocompress.results.run_folder import RunFolder
from autocompress.settings_schema import refuse_unknown_keys, require_kind
from autocompress.space.search_space import SearchSpace
from autocompress.task import Task, load_task, require_task
from autocompress.tasks.identifiers import is_task_id, read_task_id

__all__ = ["resume", "search"]


def search(
    task: Task | str,
    *,
    run_dir: str | Path,
    space: str | SearchSpace = "default",
    show_progress: bool = True,
    **settings: Unpack[SettingsDict],
) -> ParetoFront:
    """Searches compressed versions of a task's model and writes the front as files that run.

    Args:
        task: see `autocompress.Task` (it travels to worker processes by cloudpickle), or the text that names one for
            `load_task`, such as "digits" or "my_model.py:task".
        run_dir: new folder for everything that the search writes.
        space: name of a file in `search_spaces/`, path of a YAML file, or a `SearchSpace`.
        show_progress: draw a live line in the terminal.
        settings: any setting of `docs/settings.md` by its name, such as `latency_budget="0.5x"` or `n_trials=200`;
            `distill` and `quantize` take mappings.

    Returns:
        The front, the front so far after Ctrl-C; each point's `.file` holds what was measured from its exported file.

    Raises:
        InputError: the task, the space, a setting or the budget does not fit; nothing is written then.
    """
    require_kind("run_dir", run_dir, "a path", str, Path)
    require_kind("space", space, "a name, a path or a SearchSpace", str, SearchSpace)
    name = space if isinstance(space, str) else space.name
    checked = SearchSettings.from_dict({"space": name, **settings})
    given = None if isinstance(space, str) else space
    return _front_of(lambda: run_new(task, checked, Path(run_dir), space=given, show_progress=show_progress))


def run_new(
    task: Task | str,
    settings: SearchSettings,
    run_dir: Path,
    *,
    space: SearchSpace | None = None,
    show_progress: bool = True,
) -> ParetoFront:
    """As `search`, with the settings in one object; `space` replaces the one that they name.

    Raises:
        StoppedError: a signal stopped the search.
    """
    from autocompress.execution.search_loop import start

    if not isinstance(task, str):
        require_task(task)
    spec = _absolute(task) if isinstance(task, str) else getattr(task, "spec", None)
    loaded = load_task(task) if isinstance(task, str) else task
    console = Console() if show_progress else None
    return start(loaded, space or settings.space, settings, run_dir, spec, console)


def resume(
    run_dir: str | Path,
    *,
    task: Task | None = None,
    show_progress: bool = True,
    trust: bool = False,
    rebuild_study: bool = False,
    **changes: Unpack[ChangeableDict],
) -> ParetoFront:
    """Continues a search that was stopped or killed; interrupted trials continue from their last rung.

    Args:
        run_dir: folder of the search.
        task: needed when the search was given a task object instead of the text that names one.
        show_progress: draw a live line in the terminal.
        trust: import what the run's files name (task, sampler, importance, runtime, Ray's address) also where the run
            was not made on this machine by this user.
        rebuild_study: make `study.journal` again from `trials.jsonl` where it is missing, damaged or cut.
        changes: changeable settings of `docs/settings.md`; `n_trials` is a new total, `minutes` a limit of this start.

    Raises:
        InputError: not a run folder, in use by another search, damaged or not to be trusted, the task's model is
            another one, or a setting that cannot change.
    """
    require_kind("run_dir", run_dir, "a path", str, Path)
    refuse_unknown_keys("resume", changes, list(CHANGEABLE))
    require_trust(RunFolder(Path(run_dir)), trust, gets_task=task is not None)
    console = Console() if show_progress else None
    return _front_of(lambda: run_again(Path(run_dir), changes, task=task, console=console, rebuild_study=rebuild_study))


def run_again(
    run_dir: Path,
    changes: Mapping[str, Any],
    *,
    task: Task | None = None,
    console: Console | None = None,
    rebuild_study: bool = False,
) -> ParetoFront:
    """As `resume`, of a run that is trusted.

    Raises:
        StoppedError: a signal stopped the search.
    """
    from autocompress.execution.search_loop import resume as resume_run

    return resume_run(run_dir, task, console, changes, rebuild_study)


def _front_of(run: Callable[[], ParetoFront]) -> ParetoFront:
    """The front of a search, the front so far where Ctrl-C stopped it."""
    try:
        return run()
    except StoppedError as stopped:
        if stopped.front is None or stopped.number != signal.SIGINT:
            raise
        front: ParetoFront = stopped.front
        return front


def _absolute(spec: str) -> str:
    """The spec of a file or an id with full paths, so that a run can be resumed from another folder."""
    if is_task_id(spec):
        return read_task_id(spec).text()
    file, colon, name = spec.rpartition(":")
    return f"{Path(file).resolve()}{colon}{name}" if file.endswith(".py") else spec
