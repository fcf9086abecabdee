"""Is a sampler that sees a window of the study as good as one that sees all of it, and knobs together as one by one?

python samplers.py --variants "tpe, tpe all" --trials 800 --seeds 5     # rows of samplers.csv
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from scale import BUDGET, HERE, World, add, record_of

from autocompress.results.objectives import Objectives
from autocompress.results.pareto import hypervolume
from autocompress.results.records import TrialRecord
from autocompress.sampling.reseeded_sampler import BestAndRecentView, GenerationsView, ReseededSampler, StudyView
from autocompress.sampling.samplers import ChoicesTPE
from autocompress.sampling.study import SearchStudy

FLOOR = 0.5  # accuracy that is worth nothing
LOOKS = (50, 100, 200, 400, 800)


def _choices(seed: int) -> BaseSampler:
    return ChoicesTPE(n_startup_trials=8, multivariate=True, seed=seed)


def _ordered(seed: int) -> BaseSampler:
    return TPESampler(n_startup_trials=8, multivariate=True, seed=seed)


def _one_by_one(seed: int) -> BaseSampler:
    return TPESampler(n_startup_trials=8, seed=seed)


def _nsga2(seed: int) -> BaseSampler:
    return NSGAIISampler(population_size=12, seed=seed)


VARIANTS: dict[str, tuple[Callable[[int], BaseSampler], Callable[..., StudyView] | None]] = {
    "tpe": (_choices, partial(BestAndRecentView, n=64)),
    "tpe, window of 128": (_choices, BestAndRecentView),
    "tpe, all trials": (_choices, None),
    "tpe, ordered choices": (_ordered, partial(BestAndRecentView, n=64)),
    "tpe, one by one, all trials": (_one_by_one, None),
    "nsga2": (_nsga2, GenerationsView),
    "nsga2, all trials": (_nsga2, None),
    "random": (lambda seed: RandomSampler(seed=seed), None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="; ".join(VARIANTS), help="names with a semicolon between them")
    parser.add_argument("--trials", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    world = World()
    for seed in range(args.seeds):
        for name in args.variants.split("; "):
            add(HERE / "samplers.csv", searched(world, name, args.trials, seed))


def searched(world: World, name: str, n_trials: int, seed: int) -> dict[str, object]:
    """One search without a latency model, in memory; the hypervolume (in thousandths) after so many trials."""
    make, view = VARIANTS[name]
    study = SearchStudy(
        None, world.space, ReseededSampler(make, seed, view), Objectives("accuracy", latency_budgets=(BUDGET,))
    )
    found: dict[str, object] = {}
    begin = time.process_time()
    for i in range(1, n_trials + 1):
        study.tell(record_of(world, study.ask()))
        if i in LOOKS:
            found[f"volume_{i}"] = round(1e3 * volume(study.records()), 2)
    spent = time.process_time() - begin
    empty = {f"volume_{look}": "" for look in LOOKS}
    return {"variant": name, "seed": seed, "ms_per_trial": round(1e3 * spent / n_trials, 1), **empty, **found}


def volume(records: list[TrialRecord]) -> float:
    """Between the front within the budget and (budget, floor)."""
    costs = [(record.latency.ratio, -record.metrics["accuracy"]) for record in records if record.latency]
    return float(hypervolume(np.array(costs), (BUDGET, -FLOOR)))


if __name__ == "__main__":
    main()
