"""Samplers by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autocompress.errors import InputError
from autocompress.extensions import find_extension
from autocompress.sampling.knapsack_sampler import KnapsackSampler, Planner
from autocompress.sampling.reseeded_sampler import BestAndRecentView, GenerationsView, ReseededSampler


class ChoicesTPE(TPESampler):
    """TPE (Bergstra et al., 2011) of all knobs at once, each with choices that have no order.

    A knob has few choices and there are many trials, so that the kernels around ordered ones are narrower than the
    step from one to the next: they cost twice as much and say no more. See experiments/008_distributed.
    """

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Positions of the choices in each knob's list."""
        knobs: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(range(ordered.low, ordered.high + 1))
            for name, ordered in search_space.items()
            if isinstance(ordered, IntDistribution)
        }
        return super().sample_relative(study, trial, knobs)


def _tpe(seed: int) -> BaseSampler:
    def make(drawn: int) -> BaseSampler:
        return ChoicesTPE(n_startup_trials=8, multivariate=True, seed=drawn)

    return ReseededSampler(make, seed, partial(BestAndRecentView, n=64))


def _nsga2(seed: int) -> BaseSampler:
    return ReseededSampler(lambda drawn: NSGAIISampler(seed=drawn, population_size=12), seed, GenerationsView)


def _random(seed: int) -> BaseSampler:
    return ReseededSampler(lambda drawn: RandomSampler(seed=drawn), seed)


def _solver(seed: int) -> BaseSampler:
    """Proposes at random until `planned` gives it a plan."""
    return ReseededSampler(KnapsackSampler, seed)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "solver": _solver,
    "tpe": _tpe,
    "nsga2": _nsga2,
    "random": _random,
}
"""Name -> function of a seed that makes the sampler."""

PLANNED = "solver"
"""The default: it needs a plan."""


def planned(planner: Planner, seed: int) -> BaseSampler:
    """The default sampler with a search's plan; from some hundred trials on it looks at the best and the latest."""

    def make(drawn: int) -> BaseSampler:
        return KnapsackSampler(drawn, planner)

    return ReseededSampler(make, seed, BestAndRecentView)


def sampler_named(name: str, seed: int) -> BaseSampler:
    """The sampler of that name in `SAMPLERS`, or made by `package.module:function` of a seed.

    Raises:
        InputError: no such sampler, or it is not one.
        MissingExtraError: its module is not installed.
    """
    make = SAMPLERS[name] if name in SAMPLERS else find_extension("sampler", name, name, SAMPLERS)
    try:
        sampler = make(seed)
    except Exception as error:  # whatever the user's function raises
        raise InputError(f"sampler {name!r} must be a function of a seed, but: {error}") from error
    if not isinstance(sampler, BaseSampler):
        raise InputError(f"sampler {name!r} must make an optuna sampler, but made a {type(sampler).__name__}")
    return sampler
