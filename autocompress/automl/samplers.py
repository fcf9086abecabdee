"""Who proposes candidates: samplers by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler

from autocompress.errors import InputError


def _tpe(seed: int) -> BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=8)


def _nsga2(seed: int) -> BaseSampler:
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=12)


def _random(seed: int) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {"tpe": _tpe, "nsga2": _nsga2, "random": _random}
"""Name -> function of a seed that makes the sampler."""


def sampler_named(name: str, seed: int) -> BaseSampler:
    """The sampler of that name in `SAMPLERS`, or made by `package.module:function` of a seed.

    Raises:
        InputError: no such sampler.
    """
    if name in SAMPLERS:
        return SAMPLERS[name](seed)
    module, _, attribute = name.partition(":")
    if not attribute:
        raise InputError(f"sampler must be one of {sorted(SAMPLERS)} or package.module:function, but got {name!r}")
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"sampler {name!r} cannot be imported: {error}") from error
    sampler: BaseSampler = make(seed)
    return sampler
