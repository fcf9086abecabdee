"""Texts of rank choices: canonical form, distances, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError
from autocompress.space.candidate import Candidate
from autocompress.space.rank_choice import SCHEMES, RankChoice, Residual, is_rank, parse_rank, rank_distance

shares = st.floats(0.001, 1)
residuals = st.one_of(
    st.none(), st.builds(Residual, share=st.floats(0.001, 0.99)), st.builds(Residual, bits=st.integers(2, 8))
)
choices = st.one_of(
    st.builds(RankChoice, st.sampled_from(SCHEMES), ratio=shares, residual=residuals),
    st.builds(RankChoice, st.sampled_from(SCHEMES), energy=shares, residual=residuals),
)


@given(choices)
def test_value_and_parse_are_inverse(choice: RankChoice) -> None:
    assert parse_rank(choice.value) == choice
    assert parse_rank(parse_rank(choice.value).value) == choice


def test_two_texts_of_one_choice_are_one_candidate() -> None:
    plain = Candidate(rank_ratio={"a": 0.5})
    assert plain.to_json() == '{"drop":[],"prune_ratio":{},"rank_ratio":{"a":0.5},"weight_bits":{}}'
    for text in ("0.5", "channel:0.5", "5e-1"):
        assert Candidate(rank_ratio={"a": text}).digest == plain.digest
    other = Candidate(rank_ratio={"a": "channel:energy:0.950"})
    assert other.rank_ratio == {"a": "energy:0.95"}
    assert Candidate.from_dict(other.to_dict()) == other
    assert other.digest != plain.digest


REFUSED: list[object] = [0, 1.5, -0.5, True, None, [0.5], float("nan"), "", "half", "0.5 ", "spatial", "spatial:"]
REFUSED += ["radial:0.5", "energy:1.5", "energy:0", "energy:nan", "0.5+", "0.5+sparse:1.0", "0.5+sparse:0"]
REFUSED += ["0.5+bits:1", "0.5+bits:16"]


@pytest.mark.parametrize("value", REFUSED)
def test_other_values_are_refused(value: object) -> None:
    assert not is_rank(value)
    with pytest.raises(InputError, match="energy:0.95.* must hold"):
        parse_rank(value)


def test_distance_prefers_the_same_scheme() -> None:
    assert rank_distance(0.5, 0.5) == rank_distance(None, None) == 0
    assert rank_distance(None, 1.0) == 0
    assert rank_distance(0.25, 0.5) == 0.25
    offered = [None, 0.5, "spatial:0.5", "energy:0.95", "0.5+bits:4"]
    for wanted in offered:
        assert min(offered, key=lambda choice: rank_distance(choice, wanted)) == wanted
    assert min(offered, key=lambda choice: rank_distance(choice, "spatial:0.3")) == "spatial:0.5"
    assert min(offered, key=lambda choice: rank_distance(choice, "energy:0.9")) == "energy:0.95"
