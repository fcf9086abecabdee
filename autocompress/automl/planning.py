"""What a search knows before and while it runs: a latency model that learns, sensitivities, the first candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from autocompress.automl.bench import Job
from autocompress.automl.blocks import blocks_of
from autocompress.automl.fisher import fisher_sensitivity
from autocompress.automl.optimizer import Knowledge, Planner
from autocompress.automl.predictor import LatencyPredictor, LaunchModel
from autocompress.automl.proposals import single_drops, uniform_candidates
from autocompress.automl.sensitivity import Probe, Sensitivity, measure_sensitivity
from autocompress.automl.solver import Solver, block_costs
from autocompress.automl.study import SearchStudy
from autocompress.candidate import Candidate
from autocompress.pareto import Floats
from autocompress.records import TrialRecord
from autocompress.space import SearchSpace
from autocompress.tasks.data import cache_folder

_TRUSTED_AFTER = 8  # measurements after which the predicted latency itself must keep the budget
_N_UNIFORM = 2
_SOLVED_SHARE = 3  # one trial in so many is a candidate of the solver
_MAX_SOLVED = 12


class Foresight:
    """Predicted latency ratios, from a model that learns from each measured trial.

    Args:
        model: of the target's latency.
    """

    def __init__(self, model: LatencyPredictor) -> None:
        self._model = model
        self._n_measured = 0

    @classmethod
    def of(cls, job: Job) -> Foresight:
        """Without a profile: a model of launches, MACs and precision borders."""
        return cls(LaunchModel(job.graph, job.reference_ms))

    def ratios(self, candidates: Sequence[Candidate]) -> Floats:
        """Shape (n_candidates,)."""
        return self._model.predict(candidates) / self._model.baseline_ms

    def screened(self, candidate: Candidate) -> float:
        """The ratio by which a candidate is turned away: the most favourable one while little was measured."""
        if self._n_measured >= _TRUSTED_AFTER:
            return float(self.ratios([candidate])[0])
        return float(self._model.interval([candidate])[0, 0]) / self._model.baseline_ms

    def learn(self, record: TrialRecord) -> None:
        """Takes in a measured trial."""
        if record.latency is not None and np.isfinite(record.latency.ratio):
            self._model.update(record.candidate, record.latency.ratio)
            self._n_measured += 1


def find_sensitivity(
    job: Job, space: SearchSpace, n_workers: int, on_choice: Callable[[int, int], None] = lambda done, total: None
) -> Sensitivity:
    """Measures what each choice costs, on the Ray that is initialized, or estimates it where the settings say so."""
    probe = Probe(job.task, job.model, job.graph, job.settings)
    if job.settings.sensitivity == "fisher":
        importance = job.settings.importance
        return fisher_sensitivity(space, job.task, job.model, job.graph, list(probe.labelled), importance)
    make_probe = partial(Probe, job.task, job.model, job.graph, job.settings)
    return measure_sensitivity(space, probe, cache_folder() / "sensitivity", make_probe, n_workers, on_choice)


def enqueue_stock(study: SearchStudy, n_trials: int) -> None:
    """What is tried first where a sampler without a plan of its own proposes."""
    study.enqueue(uniform_candidates(study.space, n_trials), "uniform")
    study.enqueue(single_drops(study.space, n_trials), "single drop")


def n_solved(n_trials: int) -> int:
    """How many of the solver's candidates a search of so many trials starts with."""
    return min(_MAX_SOLVED, max(1, n_trials // _SOLVED_SHARE))


def enqueue_solved(study: SearchStudy, sensitivity: Sensitivity, foresight: Foresight, n_points: int) -> None:
    """What is tried first by the default sampler: a few uniform candidates, then the solver's predicted front."""
    study.enqueue(uniform_candidates(study.space, n_points)[:_N_UNIFORM], "uniform")
    blocks = blocks_of(study.space)
    costs = block_costs(blocks, sensitivity.increases(study.space))
    front = Solver(study.space, blocks, foresight.ratios).front(costs, study.budget or 1.0, n_points)
    changed = [solution.candidate for solution in front if not solution.candidate.is_baseline]
    study.enqueue(from_the_middle(changed), "solver")


def planner_of(study: SearchStudy, sensitivity: Sensitivity, foresight: Foresight) -> Planner:
    """What the default sampler proposes by."""
    increases = sensitivity.increases(study.space)
    return Planner(Knowledge(study.space, increases, foresight.ratios, study.budget, study.min_score))


def from_the_middle(candidates: Sequence[Candidate]) -> list[Candidate]:
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
