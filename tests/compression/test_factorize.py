"""Low rank: optimality against numpy, shapes, full rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autocompress.compression.factorize import can_factorize, factorize_
from autocompress.errors import CompressionError


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_linear_is_the_best_of_its_rank(n_in: int, n_out: int, rank: int, bias: bool) -> None:
    rank = min(rank, n_in, n_out)
    model = nn.Sequential(nn.Linear(n_in, n_out, bias=bias))
    weight = model[0].weight.detach().numpy().astype(np.float64)  # type: ignore[union-attr]
    factorize_(model, "0", rank)
    first, second = model[0][0], model[0][1]  # type: ignore[index]
    product = (second.weight @ first.weight).detach().numpy()
    tail = np.sqrt((np.linalg.svd(weight, compute_uv=False)[rank:] ** 2).sum())
    assert np.linalg.norm(product - weight) == pytest.approx(tail, abs=1e-5)
    assert (second.bias is not None) == bias


@pytest.mark.parametrize("padding", [0, 1, "same"])
def test_conv_at_full_rank_is_the_same_function(padding: int | str) -> None:
    stride = 1 if padding == "same" else 2
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=stride, padding=padding, dilation=2))
    x = torch.randn(2, 3, 12, 12)
    expected = model(x)
    factorize_(model, "0", 8)
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert sum(1 for module in model.modules() if isinstance(module, nn.Conv2d)) == 2


def test_what_cannot_be_split_says_why() -> None:
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    assert "groups=8" in str(can_factorize(depthwise))
    assert "reflect" in str(can_factorize(nn.Conv2d(8, 8, 3, padding_mode="reflect")))
    with pytest.raises(CompressionError, match="grouped"):
        factorize_(nn.Sequential(depthwise), "0", 2)
    with pytest.raises(CompressionError, match="1 <= rank <= 4"):
        factorize_(nn.Sequential(nn.Linear(4, 4)), "0", 5)
    with pytest.raises(CompressionError, match="1 <= rank"):
        factorize_(nn.Sequential(nn.Linear(4, 4)), "0", 0)
