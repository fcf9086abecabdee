"""Samplers whose proposals depend only on the seed, the number of proposals and the trials told; at a bounded cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autocompress.results.pareto import non_dominated

Make = Callable[[int], BaseSampler]
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
_GENERATION = NSGAIISampler._get_generation_key()
_PARENTS = NSGAIISampler._get_parent_cache_key_prefix()


class ReseededSampler(BaseSampler):
    """A sampler made anew for each proposal, with a seed of its own.

    A search that was killed and resumed so proposes what an undisturbed one would: there is no random state to lose.
    Trials that run again after a kill are not counted as proposals.

    Args:
        make: makes the sampler from a seed.
        seed: of the search.
        view: makes what the sampler sees of a study; None: all of it.
    """

    def __init__(self, make: Make, seed: int, view: Callable[[Study], StudyView] | None = None) -> None:
        self._make, self._seed, self._make_view = make, seed, view
        self._inner = make(seed)
        self._view: StudyView | None = None
        self._knobs: dict[str, BaseDistribution] = {}
        self._n_again: int | None = None

    def reseed_rng(self) -> None:
        """Nothing to do: no proposal uses the random state of another."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Makes the sampler of this proposal."""
        if self._n_again is None:  # they are all queued before the first proposal of a start
            self._n_again = sum("again" in other.user_attrs for other in study.get_trials(deepcopy=False))
        position = max(0, trial.number - self._n_again)
        if self._make_view is not None:
            self._view = self._view or self._make_view(study)
            self._view.begin(trial)
        self._inner = self._make(int(np.random.SeedSequence([self._seed, position]).generate_state(1)[0]))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Asks the sampler of this proposal, until it has found the knobs: a study's are the same in all its trials.

        Optuna's samplers would compare each knob of each trial with those of all others, at each proposal.
        """
        self._knobs = self._knobs or self._inner.infer_relative_search_space(self._seen(study), trial)
        return self._knobs

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Asks the sampler of this proposal."""
        return self._inner.sample_relative(self._seen(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Asks the sampler of this proposal."""
        return self._inner.sample_independent(self._seen(study), trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Tells the sampler, and the view."""
        self._inner.after_trial(study, trial, state, values)
        if self._view is not None and state in _ENDED:
            self._view.ended(trial.number)

    def _seen(self, study: Study) -> Study:
        return study if self._view is None else self._view  # type: ignore[return-value]  # it only reads trials


class StudyView(ABC):
    """Some of a study's trials, to a sampler that only reads them; all else is the study's.

    A proposal so costs the same however long the search has lasted: each trial is looked at once, when it has ended.

    Args:
        study: of two objectives.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._new = [trial.number for trial in study.get_trials(deepcopy=False, states=_ENDED)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    @property
    def whole(self) -> Study:
        """The study behind the view."""
        return self._study

    def begin(self, trial: FrozenTrial) -> None:
        """Called with each new trial before its knobs are chosen."""
        self.update()

    def ended(self, number: int) -> None:
        """Notes that a trial of that number has ended; `update` looks at it."""
        self._new.append(number)

    def update(self) -> None:
        """Takes in what has ended since."""
        if self._new:
            trials = self._study.get_trials(deepcopy=False)
            for number in self._new:
                self._take(trials[number])
            self._new = []

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """Those in view, by number."""
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        """What Optuna's samplers call."""
        shown = self._shown(states)
        if shown is None:
            return self._study.get_trials(deepcopy, states)
        return sorted(shown, key=lambda trial: trial.number)

    @abstractmethod
    def _take(self, trial: FrozenTrial) -> None:
        """Takes a trial in that has ended."""

    @abstractmethod
    def _shown(self, states: Container[TrialState] | None) -> Iterable[FrozenTrial] | None:
        """The trials of those states that are in view; None: all that the study has."""


class BestAndRecentView(StudyView):
    """The best and the latest trials, about `2 * n` to `3 * n` of them, and the latest `n` that run.

    Best are those within all constraints, then those of the first fronts; they are sorted out now and then.

    Args:
        study: of two objectives.
        n: half the number of trials that are seen; as long as no more than `3 * n` have ended all are.
    """

    def __init__(self, study: Study, n: int = 128) -> None:
        super().__init__(study)
        self._n, self._n_ended = n, 0
        self._best: list[FrozenTrial] = []
        self._latest: deque[FrozenTrial] = deque(maxlen=n)

    def _take(self, trial: FrozenTrial) -> None:
        self._n_ended += 1
        self._latest.append(trial)
        self._best.append(trial)
        if len(self._best) > 2 * self._n:
            self._best = best_of(self._best, self._study, self._n)

    def _shown(self, states: Container[TrialState] | None) -> Iterable[FrozenTrial] | None:
        if self._n_ended <= 3 * self._n:
            return None
        shown = {trial.number: trial for trial in (*self._best, *self._latest)}
        if states is None or TrialState.RUNNING in states:
            running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            shown |= {trial.number: trial for trial in running[-self._n :]}
        return [trial for trial in shown.values() if states is None or trial.state in states]


class GenerationsView(StudyView):
    """What NSGA-II looks at: the complete trials of its last two generations and their parents, which may be older.

    A trial that runs again is of the generation that it was of.
    """

    def __init__(self, study: Study) -> None:
        super().__init__(study)
        self._latest: list[tuple[int, FrozenTrial]] = []
        self._newest = 0

    def begin(self, trial: FrozenTrial) -> None:
        """Optuna asks the sampler nothing about a queued trial, so it would be of no generation."""
        super().begin(trial)
        if "again" in trial.user_attrs:
            before = self._study.get_trials(deepcopy=False)[trial.user_attrs["again"]]
            if _GENERATION in before.system_attrs:
                generation = before.system_attrs[_GENERATION]
                self._study._storage.set_trial_system_attr(trial._trial_id, _GENERATION, generation)

    def _take(self, trial: FrozenTrial) -> None:
        generation = trial.system_attrs.get(_GENERATION)
        if trial.state is not TrialState.COMPLETE or generation is None:
            return
        self._latest.append((generation, trial))
        self._newest = max(self._newest, generation)
        self._latest = [(number, other) for number, other in self._latest if number >= self._newest - 1]

    def _shown(self, states: Container[TrialState] | None) -> Iterable[FrozenTrial]:
        if states is not None:
            return [trial for _, trial in self._latest if trial.state in states]
        shown = {trial.number: trial for _, trial in self._latest}
        parents = self._study._storage.get_study_system_attrs(self._study._study_id)
        for generation in range(self._newest - 1, self._newest + 2):
            for trial_id in parents.get(f"{_PARENTS}{generation}", ()):
                trial = self._study._storage.get_trial(trial_id)
                shown[trial.number] = trial
        return shown.values()


def best_of(trials: Sequence[FrozenTrial], study: Study, n: int) -> list[FrozenTrial]:
    """The `n` best: feasible before infeasible by how much, and front after front; the newer of equals."""
    signs = np.array([1.0 if direction.name == "MINIMIZE" else -1.0 for direction in study.directions])
    excess = np.array([sum(max(0.0, value) for value in (trial.constraints or {}).values()) for trial in trials])
    values = np.array([trial.values if trial.values is not None else [np.inf] * len(signs) for trial in trials])
    rank = np.full(len(trials), len(trials))
    left = np.flatnonzero(excess <= 0)
    for front in range(len(trials)):
        if not len(left):
            break
        marked = non_dominated(values[left] * signs)
        rank[left[marked]] = front
        left = left[~marked]
    order = sorted(range(len(trials)), key=lambda i: (excess[i], rank[i], -trials[i].number))
    return [trials[i] for i in order[:n]]
