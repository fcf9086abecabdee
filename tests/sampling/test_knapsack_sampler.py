"""The default sampler: reproducible, never outside the space or the budget, better than chance where sums mislead."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from optuna.samplers import BaseSampler, RandomSampler

from autocompress.results.objectives import Floats
from autocompress.results.pareto import hypervolume
from autocompress.results.records import Latency, Rung, TrialRecord
from autocompress.sampling.knapsack import blocks_of
from autocompress.sampling.knapsack_sampler import KnapsackSampler, Planner, SamplerContext
from autocompress.sampling.study import SearchStudy
from autocompress.sampling.surrogate import CostTable, Surrogate
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Choice, Knob, SearchSpace
from autocompress.testing.replay import Evaluation, replay
from tests.shared.objectives import of_accuracy

N_BLOCKS = 6
SPACE = SearchSpace(
    tuple(
        knob
        for i in range(N_BLOCKS)
        for knob in (
            Knob("prune_ratio", f"b{i}.conv", (0.0, 0.25, 0.5), f"b{i}"),
            Knob("drop", f"b{i}", (False, True)),
            Knob("weight_bits", f"b{i}.conv", (32, 8), f"b{i}"),
        )
    )
)
INCREASES: dict[str, dict[Choice, float]] = {
    **{f"prune_ratio:b{i}.conv": {0.0: 0.0, 0.25: 0.1 + 0.03 * i, 0.5: 0.3 + 0.05 * i} for i in range(N_BLOCKS)},
    **{f"drop:b{i}": {False: 0.0, True: 0.5 + 0.1 * i} for i in range(N_BLOCKS)},
    **{f"weight_bits:b{i}.conv": {32: 0.0, 8: 0.01} for i in range(N_BLOCKS)},
}
HIDDEN = (0.2, 2.0, 0.3, 1.0, 0.2, 1.5)
"""What each block's choices really cost, as multiples of what the sensitivities say."""


def latency(candidate: Candidate) -> float:
    names = [f"b{i}.conv" for i in range(N_BLOCKS) if f"b{i}" not in candidate.drop]
    bits = [32, *(candidate.weight_bits.get(name, 32) for name in names), 32]
    borders = sum(a != b for a, b in itertools.pairwise(bits))
    blocks = [(1 - candidate.prune_ratio.get(n, 0.0)) * (0.5 if n in candidate.weight_bits else 1.0) for n in names]
    return (1 + sum(blocks) + 0.4 * borders) / (1 + N_BLOCKS)


def predict(candidates: Sequence[Candidate]) -> Floats:
    return np.array([latency(candidate) for candidate in candidates])


def evaluate(candidate: Candidate) -> Evaluation:
    choices = SPACE.choices_of(candidate)
    losses = [
        HIDDEN[i]
        * sum(
            INCREASES[name][value]
            for name, value in choices.items()
            if name.split(":")[1].split(".")[0] == f"b{i}" and not (f"b{i}" in candidate.drop and ".conv" in name)
        )
        for i in range(N_BLOCKS)
    ]
    together = sum(losses) + 0.5 * losses[0] * losses[4]  # what sums do not see
    accuracy = 0.95 * float(np.exp(-together / 1.5))
    rungs = (Rung(0, {"accuracy": accuracy}),)
    return Evaluation(candidate, Latency(latency(candidate), 0.0, 1.0, 9), rungs, (1.0,))


def planner(budget: float | None = None) -> Planner:
    return Planner(SamplerContext(SPACE, INCREASES, predict, lambda: predict, of_accuracy(budget)))


def run(sampler: BaseSampler, n_trials: int, budget: float | None = None) -> list[TrialRecord]:
    study = SearchStudy(None, SPACE, sampler, of_accuracy(budget), predict=latency)
    return replay(study, evaluate, n_trials)


def area(records: list[TrialRecord]) -> float:
    points = [[r.latency.ratio, -r.metrics["accuracy"]] for r in records if r.latency is not None]
    return hypervolume(np.array(points), (1.0, 0.0))


def test_it_beats_chance_where_sums_mislead() -> None:
    ours = [area(run(KnapsackSampler(seed, planner()), 25)) for seed in range(3)]
    chance = [area(run(RandomSampler(seed=seed), 25)) for seed in range(3)]
    assert min(ours) > max(chance)


def test_the_same_seed_gives_the_same_trials() -> None:
    first, again, other = (
        [r.candidate.digest for r in run(KnapsackSampler(seed, planner()), 12)] for seed in (1, 1, 2)
    )
    assert first == again
    assert first[3:] != other[3:]


def test_nothing_that_is_predicted_over_the_budget_is_evaluated() -> None:
    records = run(KnapsackSampler(0, planner(0.5)), 20, 0.5)
    assert len(records) == 20
    assert all(latency(record.candidate) <= 0.5 for record in records)
    assert len({record.candidate.digest for record in records}) == 20


def test_without_a_planner_it_draws_at_random() -> None:
    assert len({r.candidate.digest for r in run(KnapsackSampler(0), 10)}) == 10


def test_a_space_of_one_choice_ends() -> None:
    space = SearchSpace((Knob("weight_bits", "fc", (32, 8)),))

    def constant(candidates: Sequence[Candidate]) -> Floats:
        return np.ones(len(candidates))

    increases: dict[str, dict[Choice, float]] = {"weight_bits:fc": {32: 0.0, 8: 0.1}}
    one = Planner(SamplerContext(space, increases, constant, lambda: constant, of_accuracy()))
    study = SearchStudy(None, space, KnapsackSampler(0, one), of_accuracy())
    records = replay(study, lambda c: Evaluation(c, Latency(1.0, 0, 1, 1), (Rung(0, {"accuracy": 0.5}),), (1.0,)), 10)
    assert len(records) == 2


def test_ties_everywhere_are_no_trouble() -> None:
    def same(candidate: Candidate) -> Evaluation:
        return Evaluation(candidate, Latency(0.5, 0, 1, 1), (Rung(0, {"accuracy": 0.9}),), (1.0,))

    study = SearchStudy(None, SPACE, KnapsackSampler(0, planner()), of_accuracy())
    assert len(replay(study, same, 15)) == 15


# --- what is learned


def table() -> CostTable:
    return CostTable.of(blocks_of(SPACE), INCREASES)


def test_features_are_sums_by_kind_and_by_block() -> None:
    candidate = Candidate({"b1.conv": 0.5}, frozenset({"b2"}), {}, {"b0.conv": 8, "b1.conv": 8})
    features = dict(zip((*table().kinds, *range(N_BLOCKS)), table().features(SPACE.choices_of(candidate)), strict=True))
    assert features["prune_ratio"] == pytest.approx(0.35)
    assert features["drop"] == pytest.approx(0.7)
    assert features["weight_bits"] == pytest.approx(0.02)
    assert features[1] == pytest.approx(0.36)
    assert features[2] == pytest.approx(0.7), "of a dropped branch nothing else counts"
    assert features[3] == 0


def test_it_learns_which_blocks_cost_more_than_their_sensitivity() -> None:
    rng = np.random.default_rng(0)
    candidates = [SPACE.sample(int(seed)) for seed in rng.integers(0, 10_000, 120)]
    features = np.array([table().features(SPACE.choices_of(item)) for item in candidates])
    scores = np.array([evaluate(item).rungs[0].metrics["accuracy"] for item in candidates])
    surrogate = Surrogate(table())
    surrogate.fit(features[:80], scores[:80])
    weights = np.mean([surrogate.sample(rng) for _ in range(200)], axis=0)
    assert weights[len(table().kinds) + 1] > weights[len(table().kinds)], "block 1 costs ten times as much as block 0"
    learned = np.corrcoef(surrogate.scores(features[80:], weights), scores[80:])[0, 1]
    plain = np.corrcoef(-features[80:, : len(table().kinds)].sum(axis=1), scores[80:])[0, 1]
    assert learned > max(0.9, plain)


def test_predictions_beyond_what_was_seen_go_on() -> None:
    surrogate = Surrogate(table())
    features = np.zeros((3, len(table().kinds) + N_BLOCKS))
    features[:, 0] = (0.0, 1.0, 2.0)
    surrogate.fit(features, np.array([0.9, 0.8, 0.7]))
    mean = np.mean([surrogate.sample(np.random.default_rng(i)) for i in range(50)], axis=0)
    beyond = features.copy()
    beyond[:, 0] = (-2.0, 1.0, 6.0)
    better, _, worse = surrogate.scores(beyond, mean)
    assert better > 0.9 and worse < 0.7
