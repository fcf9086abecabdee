"""The Wilson interval against scipy and against its definition as an inverted test."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from autocompress.report.interval import Z_95, wilson_interval


@settings(max_examples=100)
@given(st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@example((0, 1))
@example((1, 1))
@example((9173, 10_000))
def test_it_is_scipys(counts: tuple[int, int]) -> None:
    n_right, n = counts
    reference = binomtest(n_right, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(n_right / n, n) == pytest.approx((reference.low, reference.high), abs=1e-12)


@settings(max_examples=60)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_its_ends_are_the_shares_that_a_score_test_just_accepts(counts: tuple[int, int]) -> None:
    n_right, n = counts
    share = n_right / n
    low, high = wilson_interval(share, n)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(Z_95 * math.sqrt(end * (1 - end) / n), rel=1e-6, abs=1e-9)
