"""Labels: connected components against a union by hand, and the reasons of frozen ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.graph.labels import Fixed, Labels, NoRuleError


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_components_are_those_of_a_union_by_hand(ties: list[tuple[int, int]]) -> None:
    labels = Labels()
    dims = [labels.fresh(3) for _ in range(5)]
    sets = [{i} for i in range(15)]
    for a, b in ties:
        labels.tie(dims[a], dims[b])
        for i, j in zip(dims[a].tolist(), dims[b].tolist(), strict=True):
            joined = sets[i] | sets[j]
            for member in joined:
                sets[member] = joined
    component, reasons = labels.resolve()
    assert component.tolist() == [min(members) for members in sets]
    assert reasons == {}


def test_a_frozen_component_shows_its_first_reason() -> None:
    labels = Labels()
    a, b, c = (labels.fresh(2) for _ in range(3))
    labels.tie(a, b)
    labels.tie(Fixed("is an input"), b)
    labels.freeze(a, "is read twice")
    component, reasons = labels.resolve()
    assert reasons == {int(component[label]): "is an input" for label in a}
    assert not {int(component[label]) for label in c} & set(reasons)


def test_rows_become_one_and_sizes_must_fit() -> None:
    labels = Labels()
    table = labels.fresh(6).reshape(2, 3)
    assert labels.tie_rows(table) is not None
    assert np.array_equal(labels.resolve()[0], [0, 1, 2, 0, 1, 2])
    with pytest.raises(NoRuleError, match="sizes 3 and 2 do not line up"):
        labels.tie(labels.fresh(3), labels.fresh(2))


def test_equal_slots_are_known() -> None:
    labels = Labels()
    assert labels.is_uniform(labels.fresh(4, uniform=True))
    assert not labels.is_uniform(labels.fresh(4))
    assert not labels.is_uniform(Fixed("has a size of its own"))
