"""Everything that can be known before the first trial: the task works, the space fits, the budget is within reach."""

from __future__ import annotations

import copy
import difflib
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from torch import nn

from autocompress.compression import CalibrationStats, compress, criterion_named
from autocompress.compression.importance import least_important
from autocompress.config import SearchSettings
from autocompress.devices import model_on
from autocompress.errors import InputError
from autocompress.execution.device_check import check_device
from autocompress.execution.judging_check import check_share, judge_splits
from autocompress.execution.trial import n_macs
from autocompress.files import digest_of
from autocompress.graph import ModelGraph, inspect_model
from autocompress.latency import LatencyModel, load_latency_model
from autocompress.latency.online_predictor import label_slower_ranks, profile_of_target
from autocompress.latency.target_device import LocalDevice, TargetDevice
from autocompress.locked_temp_dir import LockedTempDir
from autocompress.machine import describe_machine, describe_versions
from autocompress.publishing.artifact import model_digest
from autocompress.results.objectives import Direction, Objectives, budget_ratios, default_limit, metric_directions
from autocompress.results.provenance import imports_of, signature_of
from autocompress.results.records import Latency, TrialRecord
from autocompress.results.run_folder import RunInfo
from autocompress.runtimes import Session, check_parity, export_for, is_executed, runtime_named, saturates
from autocompress.sampling.initial_candidates import strongest_candidates, strongest_text
from autocompress.sampling.samplers import sampler_named
from autocompress.search_context import SearchContext, device_here
from autocompress.space.candidate import INT8_BITS
from autocompress.space.search_space import SearchSpace
from autocompress.task import Task
from autocompress.task_access import calibration_of, examples_of, model_of
from autocompress.task_check import check_task

_BYTES_PER_MIB = 2**20
_REFERENCE_ROUNDS = 15
_REACH_ROUNDS = 5


@dataclass(frozen=True)
class PreparedSearch:
    """What is known before any trial.

    Attributes:
        context: what the trials share.
        space: of the search.
        info: of the run.
        baseline: the uncompressed model's record, trial 0.
        notes: what the user should know of the task and the space, a line each.
    """

    context: SearchContext
    space: SearchSpace
    info: RunInfo
    baseline: TrialRecord
    notes: tuple[str, ...] = ()


def prepare(
    task: Task,
    space: str | SearchSpace,
    settings: SearchSettings,
    spec: str | None,
    target_device: TargetDevice | None = None,
) -> PreparedSearch:
    """Checks the task, the space and the budget, and measures the uncompressed model; writes nothing.

    Args:
        task: what is compressed.
        space: a name, a path, or a space.
        settings: of the search.
        spec: text that loads the task again, or None.
        target_device: the machine that the model is for, when it is another one than this.

    Raises:
        InputError: whatever does not fit, with the way out.
        ExportError: the runtime cannot take the uncompressed model, or its file gives something else.
    """
    runtime = runtime_named(settings.runtime)
    sampler_named(settings.sampler, settings.seed)
    criterion_named(settings.importance)
    if settings.latency_budget is not None:
        budget_ratios(settings.latency_budget, 1.0)
    device_here(settings)
    check_task(task)
    model, inputs = model_of(task), examples_of(task)
    check_device(task, model, settings, device_here(settings))
    graph = inspect_model(model, inputs)
    space = _checked_space(space, graph).label_bits(graph, partial(is_executed, runtime.capabilities()))
    if settings.latency_model is not None:
        profile = profile_of_target(settings.latency_model, settings, task, graph)
        space = label_slower_ranks(space, profile) if isinstance(profile, LatencyModel) else space
    _check_features(model, settings, space)
    _check_importance(model, graph, task, settings)
    metrics, n_selection, notes = judge_splits(model_on(model, device_here(settings)), task)
    directions = metric_directions(getattr(task, "objectives", None), list(metrics))
    check_share(next(iter(directions)), metrics, settings.min_accuracy)
    with LockedTempDir() as temp_dir:
        scratch = temp_dir.path
        file = export_for(task, runtime, model, inputs, scratch)
        reference = file.read_bytes()
        device = target_device or LocalDevice(settings.runtime, settings.n_threads)
        check_parity(model, device.load, file, next(calibration_of(task)))
        session = device.load(file)
        timing = device.time(session, session, inputs, _REFERENCE_ROUNDS)
        objectives = _objectives(settings, metrics, directions, timing.reference_ms)
        info = _info(task, spec, settings, objectives, model, graph, space)
        info = replace(
            info,
            half_range_weights=_may_saturate(settings, space, device),
            n_selection=n_selection,
            reference_digest=digest_of(reference),
        )
        context = make_context(task, model, graph, info, reference)
        _check_reachable(context, space, device, session, scratch)
    baseline = TrialRecord(
        number=0,
        state="complete",
        origin="baseline",
        candidate=space.baseline(),
        metrics=metrics,
        latency=Latency(1.0, timing.spread, timing.reference_ms, timing.n_rounds),
        feasible=info.objectives.budget is None or info.objectives.budget >= 1.0,
        n_params=graph.n_params,
        n_macs=n_macs(model, inputs),
        size_mib=len(reference) / _BYTES_PER_MIB,
    )
    return PreparedSearch(context, space, info, baseline, (*space.notes, *notes))


def make_context(task: Task, model: nn.Module, graph: ModelGraph, info: RunInfo, reference: bytes) -> SearchContext:
    """What the trials of a run share; `reference` is the uncompressed model's file."""
    return SearchContext(
        task=task,
        model=copy.deepcopy(model).eval(),
        graph=graph,
        settings=info.settings,
        reference=reference,
        objectives=info.objectives,
        half_range_weights=info.half_range_weights,
    )


def _may_saturate(settings: SearchSettings, space: SearchSpace, device: TargetDevice) -> bool:
    """Whether 8-bit kernels of the target saturate: probed there, and assumed where it is not at hand."""
    if not any(INT8_BITS in knob.choices for knob in space.knobs if knob.kind == "weight_bits"):
        return False
    if settings.latency_model is not None:
        profile = load_latency_model(settings.latency_model)
        if settings.force_latency_model or not isinstance(profile, LatencyModel):
            return True
    return saturates(runtime_named(settings.runtime), None if device.is_here else device.load)


def _checked_space(space: str | SearchSpace, graph: ModelGraph) -> SearchSpace:
    if isinstance(space, str):
        space = SearchSpace.load(space, graph)
    if not space.knobs:
        raise InputError(
            f"the space {space.name!r} leaves nothing to search in this model; "
            "offer more choices (channel counts are multiples of channel_grid), or look at `autocompress inspect`"
        )
    return space


def _objectives(
    settings: SearchSettings, metrics: Mapping[str, float], directions: Mapping[str, Direction], reference_ms: float
) -> Objectives:
    """The search's objectives: the first of the task's directions is optimised, the others are shown."""
    metric, *further = directions
    limit = settings.min_accuracy
    budget = settings.latency_budget
    return Objectives(
        metric=metric,
        direction=directions[metric],
        reference_ms=reference_ms,
        latency_budgets=() if budget is None else budget_ratios(budget, reference_ms),
        metric_limit=default_limit(metrics[metric], directions[metric]) if limit is None else limit,
        max_size_mib=settings.size_budget_mib,
        max_memory_mib=settings.memory_budget_mib,
        further={name: directions[name] for name in further},
    )


def _check_features(model: nn.Module, settings: SearchSettings, space: SearchSpace) -> None:
    if not settings.distill.feature_layers and any(knob.name == "fine_tune:feature_weight" for knob in space.knobs):
        raise InputError("a space that offers feature_weight needs feature_layers in `distill`, but there are none")
    paths = dict(model.named_modules())
    for path in settings.distill.feature_layers:
        if path not in paths:
            near = difflib.get_close_matches(path, paths, n=3)
            raise InputError(f"feature_layers must name modules of the model, but it has no {path!r}; near: {near}")


def _check_importance(model: nn.Module, graph: ModelGraph, task: Task, settings: SearchSettings) -> None:
    """Tries a criterion of the user's own on the smallest channel group."""
    groups = sorted((group for group in graph.groups if not group.sizes), key=lambda group: group.n_channels)
    if ":" not in settings.importance or not groups:
        return
    calibration = list(calibration_of(task))
    stats = CalibrationStats(model, graph, calibration, task, settings.seed)
    try:
        least_important(stats, groups[0], 1, criterion_named(settings.importance))
    except Exception as error:  # whatever the user's function raises
        raise InputError(
            f"importance {settings.importance!r} must be a function of (calibration statistics, channel group) that "
            f"gives a figure for each channel, but: {type(error).__name__}: {error}"
        ) from error


def _info(
    task: Task,
    spec: str | None,
    settings: SearchSettings,
    objectives: Objectives,
    model: nn.Module,
    graph: ModelGraph,
    space: SearchSpace,
) -> RunInfo:
    group_of = {path: group.name for group in graph.groups for path in group.producers}
    branch_of = {path: branch.name for branch in graph.branches for path in branch.layers}
    layers = tuple(
        {
            "path": layer.path,
            "kind": layer.kind,
            "n_params": layer.n_params,
            "n_macs": layer.n_macs,
            "group": group_of.get(layer.path),
            "branch": branch_of.get(layer.path),
        }
        for layer in graph.layers
    )
    return RunInfo(
        task=spec or str(getattr(task, "name", type(task).__name__)),
        task_spec=spec,
        settings=replace(settings, space=space.name) if settings.space != space.name else settings,
        objectives=objectives,
        model_digest=model_digest(model),
        space_digest=space.digest,
        layers=layers,
        knobs=tuple(asdict(knob) for knob in space.knobs),
        frozen=tuple({"name": f.name, "what": f.what, "reason": f.reason} for f in graph.frozen),
        machine=describe_machine(),
        versions=describe_versions(),
        command=_command(),
        started=datetime.now(UTC).isoformat(),
        rank_grid=space.rank_grid,
        signature=signature_of(imports_of(spec, settings)),
    )


def _command() -> str:
    """What was typed to `autocompress`; of a program of the user's own its name alone: arguments may be secrets."""
    program = Path(sys.argv[0])
    if program.name == "autocompress" or program.parts[-2:] == ("autocompress", "__main__.py"):
        return shlex.join(["autocompress", *sys.argv[1:]])
    return shlex.quote(program.name)


def _check_reachable(
    context: SearchContext, space: SearchSpace, device: TargetDevice, reference: Session, scratch: Path
) -> None:
    """Builds and times the strongest candidates, untrained; one within the budget is enough."""
    if context.objectives.budget is None:
        return
    runtime, inputs = runtime_named(context.settings.runtime), examples_of(context.task)
    calibration = [next(calibration_of(context.task))]
    fastest = float("inf")
    for candidate in strongest_candidates(space):
        student = compress(context.model, candidate, inputs, calibration, graph=context.graph, reconstruct=False)
        session = device.load(export_for(context.task, runtime, student, inputs, scratch))
        fastest = min(fastest, device.time(session, reference, inputs, _REACH_ROUNDS).ratio)
        if fastest <= context.objectives.latency_budgets[-1]:
            return
    whole_ms = context.objectives.reference_ms
    raise InputError(
        f"the budget {context.settings.latency_budget} is out of reach: of the strongest candidates of space "
        f"{space.name!r} the fastest takes {fastest:.3g}x ({fastest * whole_ms:.3g}ms) of the uncompressed "
        f"{whole_ms:.3g}ms; these knobs bind, as the strongest that is offered: {strongest_text(space)}; "
        "raise the budget or offer stronger choices"
    )
