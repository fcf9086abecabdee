"""Prepares the sampler before the first trial: sensitivities and the first candidates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from autocompress.execution.fisher import fisher_sensitivity
from autocompress.execution.sensitivity import Effort, Sensitivity, SensitivityProbe, measure_sensitivity
from autocompress.latency.online_predictor import OnlineLatencyPredictor
from autocompress.results.objectives import ratio
from autocompress.results.records import WHOLE_MODEL
from autocompress.sampling.initial_candidates import single_drop_candidates, uniform_candidates
from autocompress.sampling.knapsack import Solver, block_costs, blocks_of
from autocompress.sampling.knapsack_sampler import Planner, SamplerContext
from autocompress.sampling.study import SearchStudy
from autocompress.search_context import SearchContext
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.tasks.data import cache_folder

_N_UNIFORM = 3
_ALL = 100  # more trials than have uniform candidates
_SOLVED_SHARE = 3  # one trial in this number is a candidate of the solver
_MAX_SOLVED = 8
_ABOVE_WHOLE_MODEL = 1.25


def find_sensitivity(context: SearchContext, space: SearchSpace, effort: Effort) -> Sensitivity:
    """Measures the loss increase of each choice on the initialized Ray, or estimates it where the settings say so."""
    make_probe = partial(
        SensitivityProbe, context.task, context.model, context.graph, context.settings, context.half_range_weights
    )
    probe = make_probe()
    if context.settings.sensitivity == "fisher":
        importance = context.settings.importance
        return fisher_sensitivity(space, context.task, probe.model, context.graph, list(probe.labelled), importance)
    return measure_sensitivity(space, probe, cache_folder() / "sensitivity", make_probe, effort)


def enqueue_uniform(study: SearchStudy, n_trials: int) -> None:
    """Queues what is tried first where a sampler without a plan of its own proposes, unless that was done before."""
    first = {
        "uniform": uniform_candidates(study.space, n_trials),
        "single drop": single_drop_candidates(study.space, n_trials),
    }
    for origin, candidates in first.items():
        if not study.has_proposed(origin):
            study.enqueue([item for item in candidates if not study.is_judged(item)], origin)


def n_knapsack_candidates(n_trials: int) -> int:
    """Number of the solver's candidates that a search of `n_trials` starts with."""
    return min(_MAX_SOLVED, max(1, n_trials // _SOLVED_SHARE))


def enqueue_knapsack_front(
    study: SearchStudy, sensitivity: Sensitivity, latency_predictor: OnlineLatencyPredictor, n_points: int
) -> None:
    """Queues the first candidates of the default sampler: a few uniform ones, then the predicted front."""
    uniform = [item for item in uniform_candidates(study.space, _ALL) if not study.is_judged(item)]
    study.enqueue(uniform[: min(_N_UNIFORM, n_points)], "uniform")
    blocks = blocks_of(study.space)
    costs = block_costs(blocks, sensitivity.increases(study.space))
    slowest = study.objectives.budget or _slowest_of_interest(study)
    front = Solver(study.space, blocks, latency_predictor.ratios).front(costs, slowest, n_points)
    changed = [solution.candidate for solution in front if not solution.candidate.is_baseline]
    study.enqueue(middle_first(changed), "solver")


def _slowest_of_interest(study: SearchStudy) -> float:
    """Latency ratio up to which candidates are planned where there is no budget.

    A little slower than the runtime's fastest whole-model precision: layers that it hurts may be spared there, and a
    user gets the rest for nothing.
    """
    ratios = [ratio(record) for record in study.records() if record.origin == WHOLE_MODEL and record.is_point]
    return min([1.0, *(_ABOVE_WHOLE_MODEL * found for found in ratios)])


def planner_of(study: SearchStudy, sensitivity: Sensitivity, latency_predictor: OnlineLatencyPredictor) -> Planner:
    """The default sampler's planner."""
    increases = sensitivity.increases(study.space)
    return Planner(
        SamplerContext(study.space, increases, latency_predictor.ratios, latency_predictor.refreshed, study.objectives)
    )


def middle_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Halves again and again, so that the first few cover the whole front."""
    order: list[int] = []
    spans = [(0, len(candidates))]
    while spans:
        start, end = spans.pop(0)
        if start < end:
            middle = (start + end) // 2
            order.append(middle)
            spans += [(start, middle), (middle + 1, end)]
    return [candidates[i] for i in order]
