"""Who proposes candidates: samplers by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import optuna
from optuna.samplers import BaseSampler

from autocompress.errors import InputError
from autocompress.extensions import find_extension
from autocompress.proposing.optimizer import Planner, SolverSampler
from autocompress.proposing.repeatable import Repeatable


def _tpe(seed: int) -> BaseSampler:
    """One knob at a time, as suits few trials; when there are hundreds, all knobs at once, which costs a tenth."""
    make = partial(optuna.samplers.TPESampler, n_startup_trials=8)
    return Repeatable(lambda drawn: make(seed=drawn), seed, make_long=lambda drawn: make(seed=drawn, multivariate=True))


def _nsga2(seed: int) -> BaseSampler:
    return Repeatable(lambda drawn: optuna.samplers.NSGAIISampler(seed=drawn, population_size=12), seed)


def _random(seed: int) -> BaseSampler:
    return Repeatable(lambda drawn: optuna.samplers.RandomSampler(seed=drawn), seed)


def _solver(seed: int) -> BaseSampler:
    """Proposes at random until `planned` gives it a plan."""
    return Repeatable(SolverSampler, seed)


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
        return SolverSampler(drawn, planner)

    return Repeatable(make, seed, make_long=make)


def sampler_named(name: str, seed: int) -> BaseSampler:
    """The sampler of that name in `SAMPLERS`, or made by `package.module:function` of a seed.

    Raises:
        InputError: no such sampler, or it is not one.
        MissingExtraError: its module is not installed.
    """
    make = SAMPLERS[name] if name in SAMPLERS else find_extension("sampler", name, name, SAMPLERS)
    try:
        sampler = make(seed)
    except TypeError as error:
        raise InputError(f"sampler {name!r} must be a function of a seed, but: {error}") from error
    if not isinstance(sampler, BaseSampler):
        raise InputError(f"sampler {name!r} must make an optuna sampler, but made a {type(sampler).__name__}")
    return sampler
