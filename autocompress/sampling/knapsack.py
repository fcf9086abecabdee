"""Candidates along the whole predicted front: a multiple-choice knapsack over blocks, by dynamic programming.

Losses of single choices are added up, so a solution proposes and never decides (SPDY, Frantar & Alistarh 2022,
arXiv:2201.13096). Latencies do not add up either: the latency model is linearised around a context (one choice for
every block), the knapsack is solved with these differences, and each solution is predicted as a whole and repaired.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.results.objectives import Floats
from autocompress.results.pareto import non_dominated
from autocompress.space.candidate import Candidate, bits_number
from autocompress.space.search_space import AS_IT_IS, Choice, Knob, SearchSpace

MAX_OPTIONS = 128

Option = Mapping[str, Choice]
"""Knob name -> choice, for all knobs of a block; the drop alone where the branch goes."""


@dataclass(frozen=True)
class KnobBlock:
    """Knobs whose latencies depend on each other, and their joint options.

    Attributes:
        name: of the branch, or of the layer or group.
        options: the first changes nothing.
    """

    name: str
    options: tuple[Option, ...]

    def nearest_to_bits(self, bits: int) -> int:
        """The option that changes nothing but the bits, each to this width where it is offered."""

        def distance(option: Option) -> tuple[int, float]:
            precisions = [value for name, value in option.items() if name.startswith("weight_bits:")]
            widths = [abs(bits_number(value) - bits) for value in precisions if isinstance(value, int | str)]
            changed = sum(
                value != AS_IT_IS[name.partition(":")[0]]
                for name, value in option.items()
                if not name.startswith("weight_bits:")
            )
            return changed, sum(widths)

        return min(range(len(self.options)), key=lambda i: distance(self.options[i]))


def blocks_of(space: SearchSpace) -> list[KnobBlock]:
    """The blocks of a space, in the order of their first knobs.

    A block with more joint options than `MAX_OPTIONS` is offered in fewer: all its layers get the same position in
    their lists of choices per kind of knob, or one single knob moves.
    """
    members: dict[str, list[Knob]] = defaultdict(list)
    for knob in space.knobs:
        members[knob.target if knob.kind == "drop" else knob.branch or knob.target].append(knob)
    return [KnobBlock(name, tuple(_options(knobs))) for name, knobs in members.items()]


def _options(knobs: Sequence[Knob]) -> list[Option]:
    drops = [knob for knob in knobs if knob.kind == "drop"]
    others = [_as_it_is_first(knob) for knob in knobs if knob.kind != "drop"]
    size = 1
    for choices in others:
        size *= len(choices[1])
    options = _product(others) if size <= MAX_OPTIONS else _in_step(others)
    return [*options, *({knob.name: True} for knob in drops)]


def _as_it_is_first(knob: Knob) -> tuple[str, tuple[Choice, ...]]:
    unchanged = AS_IT_IS[knob.kind]
    return knob.name, (unchanged, *(choice for choice in knob.choices if choice != unchanged))


def _product(others: Sequence[tuple[str, tuple[Choice, ...]]]) -> list[Option]:
    names = [name for name, _ in others]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(choices for _, choices in others))]


def _in_step(others: Sequence[tuple[str, tuple[Choice, ...]]]) -> list[Option]:
    """Options where all knobs of a kind share a position; also each single choice with the rest at full or 8 bits."""
    kinds: dict[str, list[tuple[str, tuple[Choice, ...]]]] = defaultdict(list)
    for name, choices in others:
        kinds[name.partition(":")[0]].append((name, choices))
    positions = [range(max(len(choices) for _, choices in group)) for group in kinds.values()]
    options: list[dict[str, Choice]] = []
    for places in itertools.product(*positions):
        option = {
            name: choices[min(place, len(choices) - 1)]
            for place, group in zip(places, kinds.values(), strict=True)
            for name, choices in group
        }
        options.append(option)
    in_step = [option for option in options if len(_changed_kinds(option)) <= 1]
    for base in in_step[:1] + [option for option in in_step if _changed_kinds(option) == {"weight_bits"}][:1]:
        for name, choices in others:
            options += [{**base, name: choice} for choice in choices]
    return [dict(items) for items in dict.fromkeys(tuple(option.items()) for option in options)]


def _changed_kinds(option: Option) -> set[str]:
    kinds = [(name.partition(":")[0], value) for name, value in option.items()]
    return {kind for kind, value in kinds if value != AS_IT_IS[kind]}


OptionIndices = NDArray[np.intp]
"""Index of the chosen option of each block, shape (n_blocks,)."""

Predict = Callable[[Sequence[Candidate]], Floats]
"""Latency ratios of candidates, shape (n,)."""

N_BUCKETS = 1000
_MAX_REPAIRS = 40
_N_ROUNDS = 2  # of linearising around what the round before found


@dataclass(frozen=True)
class Knapsack:
    """The cheapest picks within every latency up to a capacity.

    Attributes:
        costs: smallest cost within bucket b or less, shape (n_buckets + 1,); infinite where nothing fits.
        width: latency of one bucket.
        offset: the least latency there is: bucket b stands for `offset + b * width`.
    """

    costs: Floats
    width: float
    offset: float
    _chosen: NDArray[np.int32]
    _buckets: tuple[NDArray[np.intp], ...]

    def option_indices(self, bucket: int) -> OptionIndices:
        """The option of each block, shape (n_blocks,)."""
        option_indices = np.empty(len(self._buckets), dtype=np.intp)
        for i in reversed(range(len(self._buckets))):
            option_indices[i] = self._chosen[i, bucket]
            bucket -= int(self._buckets[i][option_indices[i]])
        return option_indices

    def steps(self) -> NDArray[np.intp]:
        """The buckets at which the cost falls: one for each point of the predicted front, fastest first."""
        falls = np.r_[np.isfinite(self.costs[0]), self.costs[1:] < self.costs[:-1]]
        return np.flatnonzero(falls)


def knapsack(
    costs: Sequence[Floats], latencies: Sequence[Floats], capacity: float, n_buckets: int = N_BUCKETS
) -> Knapsack:
    """Picks one option of each block, at the least total cost for every total latency up to `capacity`.

    Latencies are rounded up to buckets, so that no solution exceeds what its bucket stands for; the cost is at most
    that of the best picks with one bucket less for each block.

    Args:
        costs: of the options of each block, shape (n_options,) each.
        latencies: of the same options; any sign.
        capacity: largest total latency.
        n_buckets: resolution.
    """
    offset = float(sum(latency.min() for latency in latencies))
    width = max(capacity - offset, 0.0) / n_buckets or 1.0
    buckets = tuple(
        np.ceil((latency - latency.min()) / width - 1e-6).clip(0, n_buckets + 1).astype(np.intp)
        for latency in latencies
    )
    best = np.zeros(n_buckets + 1) if capacity >= offset else np.full(n_buckets + 1, np.inf)
    chosen = np.zeros((len(costs), n_buckets + 1), dtype=np.int32)
    for i, (cost, steps) in enumerate(zip(costs, buckets, strict=True)):
        after = np.full(n_buckets + 1, np.inf)
        for option in range(len(cost)):
            step = int(steps[option])
            if step > n_buckets:
                continue
            total = best[: n_buckets + 1 - step] + cost[option]
            better = total < after[step:]
            after[step:][better] = total[better]
            chosen[i, step:][better] = option
        best = after
    return Knapsack(best, width, offset, chosen, buckets)


@dataclass(frozen=True)
class Solution:
    """A candidate with what is predicted of it.

    Attributes:
        candidate: the choices.
        option_indices: the option of each block.
        cost: predicted loss increase: a sum over blocks.
        latency: predicted ratio of the whole candidate.
    """

    candidate: Candidate
    option_indices: OptionIndices
    cost: float
    latency: float


class Solver:
    """Solves one space for any costs, with one latency model.

    Args:
        space: of the search.
        blocks: of the space.
        predict: latency ratios of whole candidates.
    """

    def __init__(self, space: SearchSpace, blocks: Sequence[KnobBlock], predict: Predict) -> None:
        self.space, self.blocks, self.predict = space, list(blocks), predict

    def candidate(self, option_indices: OptionIndices) -> Candidate:
        """The candidate of these options."""
        choices: dict[str, Choice] = {}
        for block, pick in zip(self.blocks, option_indices, strict=True):
            choices.update(block.options[pick])
        return self.space.candidate(choices)

    def linearise(self, context: OptionIndices) -> list[Floats]:
        """Predicted latency with each option in the place of the context's, one array for each block.

        Each block's array is what the option adds to the context; the context's own latency is shared out equally, so
        that sums of one option for each block approximate whole candidates.
        """
        return self.differences(self.predict(self.neighbours(context)))

    def neighbours(self, context: OptionIndices) -> list[Candidate]:
        """The context, then it with each option of each block in turn."""
        everyone = [self.candidate(context)]
        for i, block in enumerate(self.blocks):
            everyone += [self.candidate(_with(context, i, option)) for option in range(len(block.options))]
        return everyone

    def differences(self, predicted: Floats) -> list[Floats]:
        """Of the `neighbours`' latencies, as `linearise`."""
        sizes = np.cumsum([1, *(len(block.options) for block in self.blocks)])
        shared = predicted[0] / len(self.blocks)
        return [predicted[start:end] - predicted[0] + shared for start, end in itertools.pairwise(sizes)]

    def front(
        self, costs: Sequence[Floats], budget: float, n_points: int, contexts: Sequence[OptionIndices] = ()
    ) -> list[Solution]:
        """The predicted front within a budget, evenly spread over latency, slowest first.

        Args:
            costs: loss increase of each option of each block.
            budget: largest predicted latency ratio.
            n_points: most points of the front.
            contexts: where the latency model is linearised; by default around nothing, 8 bits everywhere, and what
                these led to.
        """
        found: dict[str, Solution] = {}
        around = list(contexts) or self.contexts()
        for _ in range(_N_ROUNDS):
            for context in around:
                solved = knapsack(costs, self.linearise(context), budget)
                option_indices = [
                    solved.option_indices(int(bucket)) for bucket in thinned(solved.steps(), 4 * n_points)
                ]
                for solution in self.solutions(option_indices, costs):
                    kept = solution if solution.latency <= budget else self.repaired(solution, costs, budget)
                    if kept is not None:
                        found.setdefault(kept.candidate.digest, kept)
            front = _front(list(found.values()))
            around = [front[i].option_indices for i in sorted({0, len(front) // 2, len(front) - 1})] if front else []
        return _spread(_front(list(found.values())), n_points)

    def contexts(self) -> list[OptionIndices]:
        """Nothing changed, and 8 bits wherever they are offered: a latency model with precision borders differs."""
        plain = np.zeros(len(self.blocks), dtype=np.intp)
        integer = np.array([block.nearest_to_bits(8) for block in self.blocks], dtype=np.intp)
        return [plain] if (plain == integer).all() else [plain, integer]

    def solutions(self, option_indices: Sequence[OptionIndices], costs: Sequence[Floats]) -> list[Solution]:
        """What is predicted of whole candidates."""
        if not option_indices:
            return []
        candidates = [self.candidate(pick) for pick in option_indices]
        latencies = self.predict(candidates)
        return [
            Solution(candidate, pick, total(costs, pick), float(latency))
            for candidate, pick, latency in zip(candidates, option_indices, latencies, strict=True)
        ]

    def repaired(self, solution: Solution, costs: Sequence[Floats], budget: float) -> Solution | None:
        """Local search: changes one block at a time, at the least cost for the latency gained, until it fits.

        Returns:
            None when no single change makes it faster.
        """
        for _ in range(_MAX_REPAIRS):
            if solution.latency <= budget:
                return solution
            option_indices = [
                _with(solution.option_indices, i, option)
                for i, block in enumerate(self.blocks)
                for option in range(len(block.options))
                if option != solution.option_indices[i]
            ]
            faster = [
                other for other in self.solutions(option_indices, costs) if other.latency < solution.latency - 1e-9
            ]
            if not faster:
                return None
            # what is gained beyond the budget is worth nothing
            start = solution
            solution = min(
                faster,
                key=lambda other: (other.cost - start.cost) / (start.latency - max(other.latency, budget) + 1e-12),
            )
        return None


def total(costs: Sequence[Floats], option_indices: OptionIndices) -> float:
    """Sum of the picked options' costs."""
    return float(sum(cost[pick] for cost, pick in zip(costs, option_indices, strict=True)))


def block_costs(blocks: Sequence[KnobBlock], increases: Mapping[str, Mapping[Choice, float]]) -> list[Floats]:
    """Loss increase of each option: the sum of its single choices' increases; a decrease counts as nothing.

    Args:
        blocks: of the space.
        increases: knob -> choice -> loss increase.
    """
    return [
        np.array([sum(max(0.0, increases[name][value]) for name, value in option.items()) for option in block.options])
        for block in blocks
    ]


def thinned(values: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """At most `n` of the values, evenly spread, with both ends."""
    if len(values) <= n:
        return values
    return values[np.linspace(0, len(values) - 1, n).round().astype(np.intp)]


def _with(option_indices: OptionIndices, block: int, option: int) -> OptionIndices:
    changed = option_indices.copy()
    changed[block] = option
    return changed


def _front(solutions: list[Solution]) -> list[Solution]:
    """The non-dominated ones, slowest first; of equal ones the first."""
    costs = np.array([[item.latency, item.cost] for item in solutions]).reshape(-1, 2)
    marked = [item for item, keep in zip(solutions, non_dominated(costs), strict=True) if keep]
    distinct = {(item.latency, item.cost): item for item in reversed(marked)}
    return sorted(distinct.values(), key=lambda item: -item.latency)


def _spread(front: list[Solution], n: int) -> list[Solution]:
    """At most `n` points, the nearest to evenly spaced latencies."""
    if len(front) <= n:
        return front
    latencies = np.array([item.latency for item in front])
    wanted = np.linspace(latencies.max(), latencies.min(), n)
    nearest = dict.fromkeys(int(np.abs(latencies - target).argmin()) for target in wanted)
    return [front[i] for i in sorted(nearest)]
