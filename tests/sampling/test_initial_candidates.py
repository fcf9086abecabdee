"""What is tried first: uniform candidates from mild to strong, and the ends of the space."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.sampling.initial_candidates import strongest_candidates, uniform_candidates
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Choice, Knob, SearchSpace
from tests.shared.tasks import tiny_space

FULL = SearchSpace(
    (
        Knob("prune_ratio", "a", (0.0, 0.25, 0.5)),
        Knob("prune_ratio", "b", (0.0, 0.25, 0.75)),
        Knob("drop", "block", (False, True)),
        Knob("rank_ratio", "a", (None, 0.5, 0.25)),
        Knob("weight_bits", "a", (32, 8)),
        Knob("weight_bits", "b", (32, 8)),
    )
)
PRUNED = {"a": 0.5, "b": 0.75}
BITS = {"a": 8, "b": 8}


def test_the_strongest_have_every_knob_at_its_end() -> None:
    gone = frozenset({"block"})
    assert {candidate.digest for candidate in strongest_candidates(FULL)} == {
        candidate.digest
        for candidate in (
            Candidate(PRUNED, gone, {}, BITS),
            Candidate(PRUNED, gone, {}, {}),
            Candidate(PRUNED, gone, {"a": 0.25}, BITS),
        )
    }


@given(st.permutations([0.5, None, 0.125, 0.25, 1.0]), st.permutations([0.25, 0.0, 0.9]), st.permutations([32, 4, 8]))
def test_the_strongest_choice_does_not_depend_on_the_order(
    ranks: list[Choice], ratios: list[Choice], bits: list[Choice]
) -> None:
    space = SearchSpace(
        (
            Knob("prune_ratio", "a", tuple(ratios)),
            Knob("rank_ratio", "a", tuple(ranks)),
            Knob("weight_bits", "a", tuple(bits)),
        )
    )
    candidates = strongest_candidates(space)
    assert {candidate.prune_ratio["a"] for candidate in candidates} == {0.9}
    assert {candidate.weight_bits.get("a", 32) for candidate in candidates} == {4, 32}
    assert {candidate.rank_ratio.get("a") for candidate in candidates} == {None, 0.125}


def test_equal_candidates_are_proposed_once() -> None:
    only_pruned = SearchSpace((Knob("prune_ratio", "a", (0.0, 0.5)),))
    assert strongest_candidates(only_pruned) == [Candidate({"a": 0.5})]
    assert [c.prune_ratio for c in uniform_candidates(only_pruned, 99)] == [{"a": 0.5}]


@pytest.mark.parametrize("n_trials", [1, 2, 3, 8, 30, 300])
@pytest.mark.parametrize("space", [FULL, tiny_space()])
def test_uniform_candidates_are_different_and_at_most_a_third(space: SearchSpace, n_trials: int) -> None:
    chosen = uniform_candidates(space, n_trials)
    assert 1 <= len(chosen) <= max(1, n_trials / 3)
    assert len({candidate.digest for candidate in chosen}) == len(chosen)
    assert not any(candidate.is_baseline for candidate in chosen), "that one is trial 0"
    for candidate in chosen:
        assert space.choices_of(candidate), "each is in the space"
        assert not candidate.drop


def test_uniform_candidates_go_from_mild_to_strong_with_8_bits_first() -> None:
    chosen = uniform_candidates(FULL, 300)
    assert chosen[0] == Candidate(weight_bits=BITS)
    assert chosen[1] == Candidate({"a": 0.25, "b": 0.25}, weight_bits=BITS)
    kinds = [bool(candidate.weight_bits) for candidate in chosen]
    assert kinds == sorted(kinds, reverse=True)
    assert kinds.count(True) >= 4
    ratios = [sum(c.prune_ratio.values()) for c in chosen if c.weight_bits and not c.rank_ratio]
    assert ratios == sorted(ratios)
    assert any(candidate.rank_ratio == {"a": 0.5} for candidate in chosen)


def test_a_space_without_knobs_for_them_gives_none() -> None:
    assert uniform_candidates(SearchSpace((Knob("drop", "block", (False, True)),)), 30) == []
