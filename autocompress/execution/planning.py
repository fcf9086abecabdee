"""What a search knows before and while it runs: a latency model that learns, sensitivities, the first candidates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np

from autocompress.config import SearchSettings
from autocompress.execution.fisher import fisher_sensitivity
from autocompress.execution.sensitivity import Effort, Sensitivity, SensitivityProbe, measure_sensitivity
from autocompress.graph import ModelGraph
from autocompress.latency import Estimate, LatencyModel, batch_size, load_latency_model
from autocompress.latency.online_model import LatencyPredictor, LaunchLatencyModel
from autocompress.results.objectives import Floats
from autocompress.results.records import Predicted, TrialRecord
from autocompress.sampling.initial_candidates import single_drop_candidates, uniform_candidates
from autocompress.sampling.knapsack import Predict, Solver, block_costs
from autocompress.sampling.knapsack_sampler import Planner, SamplerContext
from autocompress.sampling.knob_blocks import blocks_of
from autocompress.sampling.study import SearchStudy
from autocompress.search_context import SearchContext
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.task import Task, as_inputs
from autocompress.tasks.data import cache_folder

_TRUSTED_AFTER = 8  # measurements after which the predicted latency itself must keep the budget
_SETTLES = 16  # measurements after which latencies are linearised anew
_N_UNIFORM = 2
_SOLVED_SHARE = 3  # one trial in so many is a candidate of the solver
_MAX_SOLVED = 8


class OnlineLatencyPredictor:
    """Predicted latency ratios, from a model that learns from each measured trial.

    Args:
        model: of the target's latency.
        profiled: it was fitted to measurements of the target, so its intervals can be trusted from the start.
    """

    def __init__(self, model: LatencyPredictor, profiled: bool = False) -> None:
        self._model, self._profiled = model, profiled
        self._n_measured = 0
        self._settled = _ratios_of(copy.deepcopy(model))

    @classmethod
    def of(cls, context: SearchContext) -> OnlineLatencyPredictor:
        """By the profile that the settings name; without one, by a model of launches, MACs and precision borders.

        An estimate promises nothing: it takes the place of that model.

        Raises:
            InputError: the profile is damaged, or of another runtime, device or model.
        """
        settings = context.settings
        if settings.latency_model is None:
            return cls(LaunchLatencyModel(context.graph, context.objectives.reference_ms))
        model = profile_of_target(settings.latency_model, settings, context.task, context.graph)
        return cls(model, profiled=isinstance(model, LatencyModel))

    def ratios(self, candidates: Sequence[Candidate]) -> Floats:
        """Shape (n_candidates,)."""
        return self._model.predict(candidates) / self._model.baseline_ms

    def screening_ratio(self, candidate: Candidate) -> float:
        """The ratio by which a candidate is turned away: with a profile, the upper end, so that what is promised holds.

        Without one it is the most favourable ratio while little was measured.
        """
        if self._profiled:
            return float(self._model.interval([candidate])[0, 1]) / self._model.baseline_ms
        if self._n_measured >= _TRUSTED_AFTER:
            return float(self.ratios([candidate])[0])
        return float(self._model.interval([candidate])[0, 0]) / self._model.baseline_ms

    def predicted(self, candidate: Candidate) -> Predicted | None:
        """What a profile expects of a candidate; None without one."""
        if not self._profiled:
            return None
        low, high = self._model.interval([candidate])[0].tolist()
        return Predicted(float(self._model.predict([candidate])[0]), low, high)

    def settled(self) -> Predict:
        """Predicted ratios as of the last full sixteen measurements: they change seldom, and alike in a resumed run."""
        return self._settled

    def learn(self, record: TrialRecord) -> None:
        """Takes in a measured trial."""
        if record.latency is not None and np.isfinite(record.latency.ratio):
            self._model.update(record.candidate, record.latency.ratio)
            self._n_measured += 1
            if self._n_measured % _SETTLES == 0:
                self._settled = _ratios_of(copy.deepcopy(self._model))


def _ratios_of(model: LatencyPredictor) -> Predict:
    return lambda candidates: model.predict(candidates) / model.baseline_ms


def profile_of_target(path: str, settings: SearchSettings, task: Task, graph: ModelGraph) -> LatencyModel | Estimate:
    """A profile, or an estimate, that fits the search.

    Raises:
        InputError: it is damaged, or of another runtime, device or model.
    """
    model = load_latency_model(path)
    batch = batch_size(as_inputs(task.example_inputs()))
    forced = settings.force_latency_model
    model.require(runtime=settings.runtime, n_threads=settings.n_threads, batch=batch, force=forced)
    model.require_model(graph)
    return model


def find_sensitivity(context: SearchContext, space: SearchSpace, effort: Effort) -> Sensitivity:
    """Measures what each choice costs, on the Ray that is initialized, or estimates it where the settings say so."""
    probe = SensitivityProbe(context.task, context.model, context.graph, context.settings)
    if context.settings.sensitivity == "fisher":
        importance = context.settings.importance
        return fisher_sensitivity(space, context.task, context.model, context.graph, list(probe.labelled), importance)
    make_probe = partial(SensitivityProbe, context.task, context.model, context.graph, context.settings)
    return measure_sensitivity(space, probe, cache_folder() / "sensitivity", make_probe, effort)


def enqueue_uniform(study: SearchStudy, n_trials: int) -> None:
    """What is tried first where a sampler without a plan of its own proposes."""
    study.enqueue(uniform_candidates(study.space, n_trials), "uniform")
    study.enqueue(single_drop_candidates(study.space, n_trials), "single drop")


def n_knapsack_candidates(n_trials: int) -> int:
    """How many of the solver's candidates a search of so many trials starts with."""
    return min(_MAX_SOLVED, max(1, n_trials // _SOLVED_SHARE))


def enqueue_knapsack_front(
    study: SearchStudy, sensitivity: Sensitivity, latency_predictor: OnlineLatencyPredictor, n_points: int
) -> None:
    """What is tried first by the default sampler: a few uniform candidates, then the solver's predicted front."""
    study.enqueue(uniform_candidates(study.space, n_points)[:_N_UNIFORM], "uniform")
    blocks = blocks_of(study.space)
    costs = block_costs(blocks, sensitivity.increases(study.space))
    front = Solver(study.space, blocks, latency_predictor.ratios).front(costs, study.objectives.budget or 1.0, n_points)
    changed = [solution.candidate for solution in front if not solution.candidate.is_baseline]
    study.enqueue(middle_first(changed), "solver")


def planner_of(study: SearchStudy, sensitivity: Sensitivity, latency_predictor: OnlineLatencyPredictor) -> Planner:
    """What the default sampler proposes by."""
    increases = sensitivity.increases(study.space)
    return Planner(
        SamplerContext(study.space, increases, latency_predictor.ratios, latency_predictor.settled, study.objectives)
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
