"""Candidates: canonical form, digests, ranges."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError
from autocompress.space.candidate import Candidate

names = st.text(min_size=1, max_size=8)
candidates = st.builds(
    Candidate,
    prune_ratio=st.dictionaries(names, st.floats(0, 0.9375)),
    drop=st.frozensets(names),
    rank_ratio=st.dictionaries(names, st.one_of(st.none(), st.floats(0.0625, 1))),
    weight_bits=st.dictionaries(names, st.sampled_from([8, 32])),
    sparsity=st.dictionaries(names, st.one_of(st.floats(0, 0.9375), st.sampled_from(["2:4", "1:8"]))),
)


@given(candidates)
def test_json_round_trip(candidate: Candidate) -> None:
    again = Candidate.from_dict(json.loads(candidate.to_json()))
    assert again == candidate
    assert again.digest == candidate.digest
    assert hash(again) == hash(candidate)


def test_order_and_choices_that_change_nothing_do_not_matter() -> None:
    one = Candidate(prune_ratio={"b": 0.5, "a": 0.25, "c": 0.0}, weight_bits={"a": 32, "b": 8})
    other = Candidate(prune_ratio={"a": 0.25, "b": 0.5}, weight_bits={"b": 8}, rank_ratio={"a": None})  # type: ignore[dict-item]
    assert one.digest == other.digest
    assert not one.is_baseline
    assert Candidate(prune_ratio={"c": 0.0}, weight_bits={"a": 32}).is_baseline


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"prune_ratio": {"conv": 1.0}}, "'conv' has 1.0"),
        ({"rank_ratio": {"conv": 0.0}}, "'conv' has 0.0"),
        ({"weight_bits": {"conv": 1}}, "'conv' has 1"),
        ({"sparsity": {"conv": 1.0}}, "'conv' has 1.0"),
        ({"sparsity": {"conv": "4:2"}}, "'conv' has '4:2'"),
        ({"sparsity": {"conv": "0:4"}}, "'conv' has '0:4'"),
        ({"sparsity": {"conv": "half"}}, "'conv' has 'half'"),
        ({"sparsity": {"conv": True}}, "'conv' has True"),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, dict[str, float]], shown: str) -> None:
    with pytest.raises(InputError, match=shown):
        Candidate(**values)  # type: ignore[arg-type]


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(InputError, match="prune_ration"):
        Candidate.from_dict({"prune_ration": {}})


def test_candidates_without_sparsity_keep_their_text_and_digest() -> None:
    text = '{"drop":["block"],"prune_ratio":{"a":0.5},"rank_ratio":{},"weight_bits":{"a":8}}'
    one = Candidate(prune_ratio={"a": 0.5}, drop=frozenset({"block"}), weight_bits={"a": 8})
    assert one.to_json() == Candidate.from_dict(json.loads(text)).to_json() == text
    other = Candidate(prune_ratio={"a": 0.5}, drop=one.drop, weight_bits={"a": 8}, sparsity={"a": 0.0, "b": 0})
    assert other.digest == one.digest
    assert not Candidate(sparsity={"a": "2:4"}).is_baseline
