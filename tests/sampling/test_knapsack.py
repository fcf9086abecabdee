"""The knapsack against brute force; solutions of a latency model in which layers do not add up."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.results.objectives import Floats
from autocompress.sampling.knapsack import MAX_OPTIONS, Solver, block_costs, blocks_of, knapsack, thinned, total
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Choice, Knob, SearchSpace

N_BLOCKS = 4
KNOBS = tuple(
    knob
    for i in range(N_BLOCKS)
    for knob in (
        Knob("prune_ratio", f"b{i}.conv", (0.0, 0.25, 0.5), f"b{i}"),
        Knob("drop", f"b{i}", (False, True)),
        Knob("weight_bits", f"b{i}.conv", (32, 8), f"b{i}"),
    )
)
SPACE = SearchSpace(KNOBS)
INCREASES: dict[str, dict[Choice, float]] = {
    **{f"prune_ratio:b{i}.conv": {0.0: 0.0, 0.25: 0.1 + 0.03 * i, 0.5: 0.3 + 0.05 * i} for i in range(N_BLOCKS)},
    **{f"drop:b{i}": {False: 0.0, True: 0.9 - 0.2 * (i == 2)} for i in range(N_BLOCKS)},
    **{f"weight_bits:b{i}.conv": {32: 0.0, 8: 0.02} for i in range(N_BLOCKS)},
}


def with_borders(candidates: Sequence[Candidate]) -> Floats:
    """Each block costs 0.2, less if pruned or at 8 bits; each border between precisions costs 0.08; 0.2 is fixed."""
    latencies = []
    for candidate in candidates:
        names = [f"b{i}.conv" for i in range(N_BLOCKS) if f"b{i}" not in candidate.drop]
        bits = [32, *(candidate.weight_bits.get(name, 32) for name in names), 32]
        borders = sum(a != b for a, b in itertools.pairwise(bits))
        blocks = [
            0.2 * (1 - candidate.prune_ratio.get(name, 0.0)) * (0.5 if name in candidate.weight_bits else 1.0)
            for name in names
        ]
        latencies.append(0.2 + sum(blocks) + 0.08 * borders)
    return np.array(latencies)


tables = st.lists(
    st.lists(st.tuples(st.integers(0, 20), st.integers(-6, 12)), min_size=1, max_size=4), min_size=1, max_size=4
)


@given(tables, st.integers(-10, 40))
def test_the_knapsack_is_the_best_of_all_picks(table: list[list[tuple[int, int]]], capacity: int) -> None:
    costs = [np.array([float(cost) for cost, _ in options]) for options in table]
    latencies = [np.array([float(latency) for _, latency in options]) for options in table]
    fastest = sum(latency.min() for latency in latencies)
    n_buckets = max(1, int(capacity - fastest))  # buckets of one: nothing is lost by rounding
    solved = knapsack(costs, latencies, float(capacity), n_buckets)
    everything = list(itertools.product(*(range(len(cost)) for cost in costs)))
    for bucket in range(n_buckets + 1):
        limit = min(solved.offset + bucket * solved.width, capacity)
        within = [total(costs, np.array(p)) for p in everything if total(latencies, np.array(p)) <= limit + 1e-9]
        assert solved.costs[bucket] == pytest.approx(min(within, default=np.inf))
        if within:
            option_indices = solved.option_indices(bucket)
            assert total(latencies, option_indices) <= limit + 1e-9
            assert total(costs, option_indices) == pytest.approx(solved.costs[bucket])


@given(st.integers(0, 10_000))
def test_rounding_never_exceeds_the_capacity_and_costs_little(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = [rng.random(3) for _ in range(5)]
    latencies = [rng.random(3) for _ in range(5)]
    everything = [np.array(p) for p in itertools.product(range(3), repeat=5)]
    solved = knapsack(costs, latencies, 2.5, 200)
    within = [total(costs, p) for p in everything if total(latencies, p) <= 2.5 - 5 * solved.width]
    if np.isfinite(solved.costs[-1]):
        assert total(latencies, solved.option_indices(200)) <= 2.5 + 1e-9
    assert solved.costs[-1] <= min(within, default=np.inf) + 1e-9


def test_where_nothing_fits_every_cost_is_infinite() -> None:
    solved = knapsack([np.array([1.0])], [np.array([2.0])], 1.0)
    assert np.isinf(solved.costs).all()
    assert len(solved.steps()) == 0


def test_sixty_layers_of_thirty_choices_take_less_than_two_seconds() -> None:
    rng = np.random.default_rng(0)
    begin = time.process_time()
    solved = knapsack([rng.random(30) for _ in range(60)], [rng.random(30) for _ in range(60)], 30.0)
    assert len(solved.option_indices(int(solved.steps()[-1]))) == 60
    assert time.process_time() - begin < 2, "processor seconds, so that a busy machine does not matter"


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.7, 0.9])
def test_solutions_are_near_the_best_of_all_candidates(budget: float) -> None:
    blocks = blocks_of(SPACE)
    solver, costs = Solver(SPACE, blocks, with_borders), block_costs(blocks, INCREASES)
    option_indices = [np.array(p) for p in itertools.product(*(range(len(block.options)) for block in blocks))]
    everything = solver.solutions(option_indices, costs)
    best = min(item.cost for item in everything if item.latency <= budget)
    found = solver.front(costs, budget, 12)
    assert all(item.latency <= budget for item in found), "each was predicted whole"
    assert [item.latency for item in found] == sorted((item.latency for item in found), reverse=True)
    assert min(item.cost for item in found) <= best + 0.1
    for item in found:
        assert with_borders([item.candidate])[0] == item.latency
        assert SPACE.choices_of(item.candidate)


def test_a_context_of_8_bits_finds_what_no_single_layer_gains() -> None:
    single = [Candidate(weight_bits={f"b{i}.conv": 8}) for i in range(N_BLOCKS)]
    assert (with_borders(single) > with_borders([Candidate()])[0]).all(), "one 8-bit layer alone is slower"
    blocks = blocks_of(SPACE)
    found = Solver(SPACE, blocks, with_borders).front(block_costs(blocks, INCREASES), 0.8, 8)
    assert any(len(item.candidate.weight_bits) == N_BLOCKS for item in found)


def test_repair_ends_within_the_budget_or_says_that_it_cannot() -> None:
    blocks = blocks_of(SPACE)
    solver, costs = Solver(SPACE, blocks, with_borders), block_costs(blocks, INCREASES)
    start = solver.solutions([np.zeros(len(blocks), dtype=np.intp)], costs)[0]
    repaired = solver.repaired(start, costs, 0.55)
    assert repaired is not None and repaired.latency <= 0.55
    assert solver.repaired(start, costs, 0.1) is None


def test_what_lowers_the_loss_costs_nothing() -> None:
    gains = {name: dict.fromkeys(values, -1.0) for name, values in INCREASES.items()}
    assert max(cost.max() for cost in block_costs(blocks_of(SPACE), gains)) == 0


def test_blocks_hold_each_knob_once_and_begin_with_no_change() -> None:
    blocks = blocks_of(SPACE)
    assert [block.name for block in blocks] == [f"b{i}" for i in range(N_BLOCKS)]
    assert [len(block.options) for block in blocks] == [3 * 2 + 1] * N_BLOCKS
    for block in blocks:
        assert SPACE.candidate(block.options[0]).is_baseline
        candidates = [SPACE.candidate(option).digest for option in block.options]
        assert len(set(candidates)) == len(candidates)
        assert SPACE.candidate(block.options[block.nearest_to_bits(8)]) == Candidate(
            weight_bits={f"{block.name}.conv": 8}
        )


def test_a_large_block_is_offered_in_fewer_options() -> None:
    knobs = [Knob("rank_ratio", f"block.{i}", (None, 0.5, 0.25), "block") for i in range(6)]
    knobs += [Knob("weight_bits", f"block.{i}", (32, 8), "block") for i in range(6)]
    (block,) = blocks_of(SearchSpace((*knobs, Knob("drop", "block", (False, True)))))
    assert len(block.options) <= MAX_OPTIONS
    assert all(value in (None, 32) for value in block.options[0].values())
    singles = [option for option in block.options if sum(v not in (None, 32) for v in option.values()) == 1]
    assert len(singles) == 6 * 2 + 6 + 1
    assert {name for option in block.options for name in option} == {knob.name for knob in knobs} | {"drop:block"}
    assert len({tuple(sorted(option.items(), key=str)) for option in block.options}) == len(block.options)


def test_thinning_keeps_both_ends() -> None:
    values = np.arange(100)
    assert list(thinned(values, 3)) == [0, 50, 99]
    assert list(thinned(values[:2], 3)) == [0, 1]
