"""The default sampler: solves the knapsack with block weights drawn from their posterior given the trials so far.

Each proposal draws weights of the sensitivities from their posterior (Thompson sampling), solves the knapsack with
them along the whole front, adds mutants of the front's points that swap latency between blocks, predicts all of them
whole, and takes the one that adds most hypervolume. It is SPDY's learning of per-layer weights (Frantar & Alistarh
2022) from the search's own trials, and EvoPress' swaps (Sieberling et al. 2024) where sums mislead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autocompress.results.objectives import Floats, Objectives
from autocompress.results.pareto import added_hypervolume, non_dominated
from autocompress.sampling.knapsack import KnobBlock, OptionIndices, Predict, Solver, blocks_of, knapsack, thinned
from autocompress.sampling.reseeded_sampler import BestAndRecentView
from autocompress.sampling.surrogate import CostTable, Surrogate
from autocompress.space.search_space import Choice, SearchSpace

_MIN_TRIALS = 3
_N_BUCKETS = 200
_N_SOLVED = 12  # points of each knapsack's front
_N_MUTANTS = 32
_N_DRAWS = 8  # of the weights, over which a candidate's gain is averaged
_N_SOLVES = 2  # draws with which the knapsack is solved


@dataclass(frozen=True)
class SamplerContext:
    """The data that the default sampler plans with.

    Attributes:
        space: of the search.
        increases: loss increase of every choice of every knob.
        predict: latency ratios of candidates; may change as trials end.
        settled: gives the model for linearising latencies; a new object after enough further measurements.
        objectives: of the search.
    """

    space: SearchSpace
    increases: Mapping[str, Mapping[Choice, float]]
    predict: Predict
    settled: Callable[[], Predict]
    objectives: Objectives


class Planner:
    """Proposes the candidate that is predicted to add most to the front of the trials so far.

    Args:
        knowledge: the data to plan with.

    Attributes:
        given: the candidates that need no second trial.
    """

    def __init__(self, knowledge: SamplerContext) -> None:
        self._knowledge, self._objectives = knowledge, knowledge.objectives
        self.given = ProposedCandidates()
        self.space = knowledge.space
        self.blocks = blocks_of(knowledge.space)
        self._solver = Solver(knowledge.space, self.blocks, knowledge.predict)
        self._table = CostTable.of(self.blocks, knowledge.increases)
        self._features: dict[int, Floats] = {}
        self._picks: dict[int, OptionIndices] = {}
        self._around = [self._solver.neighbours(context) for context in self._solver.contexts()]
        self._latencies: list[list[Floats]] = []
        self._settled: Predict | None = None

    def propose(self, trials: Sequence[FrozenTrial], rng: np.random.Generator) -> dict[str, int]:
        """Positions of the choices in each knob's list.

        Args:
            trials: that ended, with values (metric, latency ratio); at least three.
            rng: of the draws.
        """
        values = np.array([(self._objectives.gain(trial.values[0]), trial.values[1]) for trial in trials])
        surrogate = Surrogate(self._table)
        surrogate.fit(np.array([self._features_of(trial) for trial in trials]), values[:, 0])
        draws = [surrogate.sample(rng) for _ in range(_N_DRAWS)]
        option_indices = [pick for weights in draws[:_N_SOLVES] for pick in self._solved(weights)]
        option_indices += self._mutants(trials, values, rng)
        distinct = {tuple(pick.tolist()): pick for pick in option_indices}
        candidates = [(self._solver.candidate(pick), pick) for pick in distinct.values()]
        new = [pair for pair in candidates if pair[0].digest not in self.given.digests] or candidates
        latencies = self._knowledge.predict([candidate for candidate, _ in new])
        features = np.array([self._table.picked(pick) for _, pick in new])
        scores = np.array([surrogate.scores(features, weights) for weights in draws])
        best, _ = new[int(self._gains(values, scores, latencies).argmax())]
        choices = self.space.choices_of(best)
        return {knob.name: knob.choices.index(choices[knob.name]) for knob in self.space.knobs}

    def _solved(self, weights: Floats) -> list[OptionIndices]:
        """The knapsack's front under these weights, in each context."""
        settled = self._knowledge.settled()
        if settled is not self._settled:
            self._latencies = [self._solver.differences(settled(everyone)) for everyone in self._around]
            self._settled = settled
        costs = self._table.costs(weights[:-1])
        option_indices = []
        for latencies in self._latencies:
            solved = knapsack(costs, latencies, self._objectives.budget or 1.0, _N_BUCKETS)
            option_indices += [solved.option_indices(int(bucket)) for bucket in thinned(solved.steps(), _N_SOLVED)]
        return option_indices

    def _mutants(self, trials: Sequence[FrozenTrial], values: Floats, rng: np.random.Generator) -> list[OptionIndices]:
        """Points of the front with one to three blocks changed."""
        parents = [self._picks_of(trials[i]) for i in np.flatnonzero(self._on_front(values)).tolist()]
        mutants = []
        for _ in range(_N_MUTANTS):
            mutant = parents[rng.integers(len(parents))].copy()
            n_changed = min(len(self.blocks), int(rng.integers(1, 4)))
            for block in rng.choice(len(self.blocks), n_changed, replace=False):
                mutant[block] = rng.integers(len(self.blocks[block].options))
            mutants.append(mutant)
        return mutants

    def _on_front(self, values: Floats) -> Any:
        """Which trials are on the front within the budget; on that of all, while none is within."""
        costs = np.column_stack([values[:, 1], -values[:, 0]])
        within = costs[:, :1] <= (self._objectives.budget or np.inf)
        return non_dominated(np.where(within, costs, np.nan) if within.any() else costs)

    def _gains(self, values: Floats, scores: Floats, latencies: Floats) -> Floats:
        """Hypervolume that each candidate is expected to add, shape (n,); over the budget, how far beyond.

        Args:
            values: of the trials, (gain, latency ratio), shape (n_trials, 2).
            scores: predicted by each draw of the weights, shape (n_draws, n).
            latencies: predicted ratios, shape (n,).
        """
        limit = self._objectives.budget or 1.0
        costs = np.column_stack([values[:, 1], -values[:, 0]])
        front = costs[self._on_front(values)]
        gains = added_hypervolume(front, (limit, -self._floor(values)), latencies, -scores).mean(axis=0)
        # where nothing is gained the best score is the most promising
        mean = scores.mean(axis=0)
        return np.where(latencies > limit, -latencies, np.where(gains > 0, gains, 1e-6 * (mean - mean.max() - 1)))

    def _floor(self, values: Floats) -> float:
        """The worst gain of interest."""
        if self._objectives.gain_limit is not None:
            return self._objectives.gain_limit
        return float(np.quantile(values[:, 0], 0.1))

    def _features_of(self, trial: FrozenTrial) -> Floats:
        if trial.number not in self._features:
            self._features[trial.number] = self._table.features(self._choices_of(trial))
        return self._features[trial.number]

    def _choices_of(self, trial: FrozenTrial) -> dict[str, Choice]:
        return {knob.name: knob.choices[trial.params[knob.name]] for knob in self.space.knobs}

    def _picks_of(self, trial: FrozenTrial) -> OptionIndices:
        """The options nearest to a trial's choices: most knobs alike."""
        if trial.number not in self._picks:
            choices = self._choices_of(trial)
            self._picks[trial.number] = np.array([_nearest(block, choices) for block in self.blocks])
        return self._picks[trial.number]


class ProposedCandidates:
    """Digests of all candidates that were given out; each finished trial is read once.

    Attributes:
        digests: of them.
    """

    def __init__(self) -> None:
        self.digests: set[str] = set()
        self._n_known = 0
        self._unfinished: list[int] = []

    def update(self, study: Study) -> None:
        """Takes in what was given out since."""
        trials = study.get_trials(deepcopy=False)
        unread = [*self._unfinished, *range(self._n_known, len(trials))]
        self.digests |= {str(trials[number].user_attrs.get("digest")) for number in unread}
        self._unfinished = [number for number in unread if not trials[number].state.is_finished()]
        self._n_known = len(trials)


class KnapsackSampler(BaseSampler):
    """See the module; draws at random while there is too little to learn from.

    Args:
        seed: of the draws.
        planner: of the search; None draws at random.
    """

    def __init__(self, seed: int, planner: Planner | None = None) -> None:
        self._rng = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)
        self._planner = planner

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All knobs are chosen together."""
        if self._planner is None or len(_complete(study)) < _MIN_TRIALS:
            return {}
        return {knob.name: IntDistribution(0, len(knob.choices) - 1) for knob in self._planner.space.knobs}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Positions of the choices of the candidate that adds most."""
        if self._planner is None or not search_space:
            return {}
        self._planner.given.update(study.whole if isinstance(study, BestAndRecentView) else study)
        return dict(self._planner.propose(_complete(study), self._rng))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """At random."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def _complete(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _nearest(block: KnobBlock, choices: Mapping[str, Choice]) -> int:
    drop = f"drop:{block.name}"
    dropped = bool(choices.get(drop))

    def unlike(option: Mapping[str, Choice]) -> int:
        if (drop in option) != dropped:
            return len(choices)
        return sum(choices[name] != value for name, value in option.items())

    return min(range(len(block.options)), key=lambda i: unlike(block.options[i]))
