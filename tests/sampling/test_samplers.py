"""Samplers are found by name; the same seed proposes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler

from autocompress.errors import InputError, MissingExtraError
from autocompress.sampling import samplers
from autocompress.sampling.knapsack_sampler import KnapsackSampler
from autocompress.sampling.reseeded_sampler import ReseededSampler
from autocompress.sampling.samplers import SAMPLERS, ChoicesTPE, sampler_named

KINDS: dict[str, type[BaseSampler]] = {
    "solver": KnapsackSampler,
    "tpe": ChoicesTPE,
    "nsga2": NSGAIISampler,
    "random": RandomSampler,
}


def proposals(sampler: BaseSampler) -> list[dict[str, int]]:
    study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
    asked = []
    for _ in range(20):
        trial = study.ask({"a": IntDistribution(0, 9), "b": IntDistribution(0, 9)})
        trial.set_constraint("latency", trial.params["a"] - 4)
        study.tell(trial, [trial.params["a"], trial.params["b"]])
        asked.append(trial.params)
    return asked


def test_every_name_has_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[BaseSampler] = []

    class Recording(ReseededSampler):
        def __init__(self, make: Callable[[int], BaseSampler], seed: int, *view: Any) -> None:
            made.append(make(seed))
            super().__init__(make, seed, *view)

    monkeypatch.setattr(samplers, "ReseededSampler", Recording)
    assert set(SAMPLERS) == set(KINDS)
    for name, kind in KINDS.items():
        assert isinstance(sampler_named(name, 0), Recording), "a resumed run proposes the same"
        assert type(made.pop()) is kind


@pytest.mark.parametrize("name", sorted(KINDS))
def test_proposals_follow_the_seed(name: str) -> None:
    first = proposals(sampler_named(name, 3))
    assert proposals(sampler_named(name, 3)) == first
    assert proposals(sampler_named(name, 4)) != first


def test_tpe_takes_positions_for_choices() -> None:
    """Two of seven choices are good, and they are no neighbours: a random search has them in two of seven trials."""
    n_good = 0
    for seed in range(4):
        study = optuna.create_study(sampler=sampler_named("tpe", seed), directions=["maximize", "minimize"])
        for i in range(60):
            trial = study.ask({"a": IntDistribution(0, 6), "b": IntDistribution(0, 6)})
            assert all(type(value) is int for value in trial.params.values())
            good = trial.params["a"] in (1, 5)
            n_good += good and i >= 20
            study.tell(trial, [float(good), 1.0])
    assert n_good > 65, "of 160; 46 would be chance"


def test_a_sampler_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_sampler.py").write_text(
        "from optuna.samplers import RandomSampler\nseeds = []\n"
        "def make(seed):\n    seeds.append(seed)\n    return RandomSampler(seed)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(sampler_named("my_sampler:make", 7), RandomSampler)
    assert __import__("my_sampler").seeds == [7]


def test_names_that_nobody_has() -> None:
    with pytest.raises(InputError, match=r"one of \['nsga2', 'random', 'solver', 'tpe'\] or .* but got 'annealing'"):
        sampler_named("annealing", 0)
    with pytest.raises(MissingExtraError, match="'no_such_module:make' cannot be imported"):
        sampler_named("no_such_module:make", 0)
    with pytest.raises(InputError, match="'math:make' cannot be imported"):
        sampler_named("math:make", 0)


@pytest.mark.parametrize("name", [":make", ".relative:make", "math:sqrt", "math:pi"])
def test_what_is_no_sampler(name: str) -> None:
    with pytest.raises(InputError, match="sampler"):
        sampler_named(name, 0)
