"""Samplers whose proposals depend on the seed, the proposals' count and what was told alone, at a bounded cost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autocompress.pareto import non_dominated

Make = Callable[[int], BaseSampler]
_N_BEST = _N_LATEST = 128
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class Repeatable(BaseSampler):
    """A sampler made anew for each proposal, with a seed of its own.

    A search that was killed and resumed so proposes what an undisturbed one would: there is no random state to lose.
    Trials that run again after a kill are not counted as proposals.

    Args:
        make: makes the sampler from a seed.
        seed: of the search.
        make_long: makes the one that takes over when more trials have ended than the `window` holds, and sees only
            those. None: `make`'s sees all trials however many.
    """

    def __init__(self, make: Make, seed: int, make_long: Make | None = None) -> None:
        self._make, self._seed, self._make_long = make, seed, make_long
        self._inner = make(seed)
        self._window: Window | None = None
        self._n_again: int | None = None

    def reseed_rng(self) -> None:
        """Nothing to do: no proposal uses the random state of another."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Makes the sampler of this proposal."""
        if self._n_again is None:  # they are all queued before the first proposal of a start
            self._n_again = sum("again" in other.user_attrs for other in study.get_trials(deepcopy=False))
        position = max(0, trial.number - self._n_again)
        seed = int(np.random.SeedSequence([self._seed, position]).generate_state(1)[0])
        make = self._make
        if self._make_long is not None:
            self._window = self._window or Window(study)
            self._window.update()
            if self._window.overflows:
                make = self._make_long
        self._inner = make(seed)
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Asks the sampler of this proposal."""
        return self._inner.infer_relative_search_space(self._seen(study), trial)

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
        """Tells the sampler, and the window."""
        self._inner.after_trial(study, trial, state, values)
        if self._window is not None and state in _ENDED:
            self._window.ended(trial.number)

    def _seen(self, study: Study) -> Study:
        if self._window is not None and self._window.overflows:
            return self._window  # type: ignore[return-value]  # a study to whoever only reads trials
        return study


class Window:
    """A study as seen through its best and its latest trials, about 256 to 384 of them; all else is the study's.

    Best are those within all constraints, then those of the first fronts; they are sorted out now and then, so that
    a proposal costs the same however long the search has lasted.

    Args:
        study: of two objectives.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._new = [trial.number for trial in study.get_trials(deepcopy=False, states=_ENDED)]
        self._n_ended = 0
        self._best: list[FrozenTrial] = []
        self._latest: deque[FrozenTrial] = deque(maxlen=_N_LATEST)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    @property
    def whole(self) -> Study:
        """The study behind the window."""
        return self._study

    @property
    def overflows(self) -> bool:
        """Whether more trials have ended than the window shows."""
        return self._n_ended > 2 * _N_BEST + _N_LATEST

    def ended(self, number: int) -> None:
        """Notes that a trial of that number has ended; `update` looks at it."""
        self._new.append(number)

    def update(self) -> None:
        """Takes in what has ended since."""
        if not self._new:
            return
        trials = self._study.get_trials(deepcopy=False)
        for number in self._new:
            self._latest.append(trials[number])
            self._best.append(trials[number])
            if len(self._best) > 2 * _N_BEST:
                self._best = best_of(self._best, self._study, _N_BEST)
        self._n_ended += len(self._new)
        self._new = []

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """Those in the window, by number."""
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        """What Optuna's samplers call."""
        shown = {trial.number: trial for trial in (*self._best, *self._latest)}
        return [shown[number] for number in sorted(shown) if states is None or shown[number].state in states]


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
