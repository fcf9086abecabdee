"""Opens a run on disk: its task, its model (checked), its space and its study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autocompress.errors import InputError
from autocompress.execution.preparation import make_context
from autocompress.files import digest_of
from autocompress.graph import inspect_model
from autocompress.publishing.artifact import model_digest
from autocompress.results.run_folder import RunFolder, RunInfo
from autocompress.sampling.samplers import sampler_named
from autocompress.sampling.study import SearchStudy
from autocompress.search_context import SearchContext
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Knob, SearchSpace
from autocompress.task import Task, load_task
from autocompress.task_access import examples_of, model_of

Predict = Callable[[Candidate], float]


@dataclass(frozen=True)
class OpenRun:
    """A run as read from disk.

    Attributes:
        context: what the trials share.
        space: of the search.
    """

    context: SearchContext
    space: SearchSpace


def task_of(folder: RunFolder, info: RunInfo, task: Task | None) -> Task:
    """The task that was searched: the given one, else the one that the run names.

    Raises:
        InputError: the run was given its task as an object, and there is none now.
    """
    if task is not None:
        return task
    if info.task_spec is None:
        raise InputError(
            f"the task of {folder.path} was given as an object; "
            "call it from Python, as in autocompress.resume(run, task=task)"
        )
    return load_task(info.task_spec)


def context_of(folder: RunFolder, info: RunInfo, task: Task) -> SearchContext:
    """The search context of a run, read again.

    Raises:
        InputError: the task's model is another one.
    """
    model = model_of(task)
    if model_digest(model) != info.model_digest:
        raise InputError(
            f"{folder.path} searched another model (or other weights) than the task gives now; start a new search"
        )
    graph = inspect_model(model, examples_of(task))
    return make_context(task, model, graph, info, _reference_of(folder, info))


def _reference_of(folder: RunFolder, info: RunInfo) -> bytes:
    """The uncompressed model's file; runs of earlier versions have no digest of it.

    Raises:
        InputError: it is missing, or is not the one that the run timed.
    """
    try:
        content = folder.reference.read_bytes()
    except OSError as error:
        raise InputError(
            f"resuming a run needs the uncompressed model's file, but {folder.reference}: {error}"
        ) from error
    if info.reference_digest and digest_of(content) != info.reference_digest:
        raise InputError(f"{folder.reference} differs from the digest in {folder.info.name}; put the file back")
    return content


def open_run(folder: RunFolder, info: RunInfo, task: Task) -> OpenRun:
    """Reads the model and the space again, to continue the study.

    Raises:
        InputError: the task's model is another one, or the run's files were edited.
    """
    context = context_of(folder, info, task)
    try:
        knobs = tuple(
            Knob(knob["kind"], knob["target"], tuple(knob["choices"]), knob["branch"], tuple(knob.get("size_only", ())))
            for knob in info.knobs
        )
        space = SearchSpace(knobs, info.settings.space, info.rank_grid)
        known = space.digest == info.space_digest
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder.info} was edited: a knob is none ({error}); restore the file") from error
    if not known:
        raise InputError(f"{folder.info} was edited: the knobs do not match their digest; restore the file")
    return OpenRun(context, space)


def study_of(folder: RunFolder, space: SearchSpace, info: RunInfo, predict: Predict | None = None) -> SearchStudy:
    """The study of a run; made where there is none yet.

    Args:
        folder: of the run; the caller holds its lock.
        space: of the search.
        info: of the run.
        predict: see `SearchStudy`.
    """
    settings = info.settings
    return SearchStudy(
        folder.study,
        space,
        sampler_named(settings.sampler, settings.seed),
        info.objectives,
        predict,
    )
