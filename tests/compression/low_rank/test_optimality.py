"""Output errors against numpy: the closed-form optimum at every rank, monotone, exact at full rank."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autocompress.compression import merge
from tests.compression.low_rank.reference import (
    error,
    least_errors,
    plain_errors,
    random_inputs,
    size,
    split,
    window_rows,
)


@settings(max_examples=15)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(0, 100))
def test_linear_has_the_least_output_error_of_every_rank(n_in: int, n_out: int, n_rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    model, x = nn.Sequential(nn.Linear(n_in, n_out)), random_inputs(seed, n_rows, n_in)
    weight, rows = model[0].weight.detach().double().numpy(), x.double().numpy()
    least, scale = least_errors(weight, rows), np.linalg.norm(rows @ weight.T)
    for rank in range(1, min(n_in, n_out) + 1):
        student = split(model, "0", "channel", (rank,), [(x,)])
        product = merge(student[0]).weight.detach().double().numpy()  # type: ignore[operator,index,union-attr]
        found = np.linalg.norm(rows @ (weight - product).T)
        assert found <= least[rank] * (1 + 1e-4) + 1e-5 * scale
        assert found >= least[rank] - 1e-5 * scale, "else the reference is none"
    assert error(student, model, x) <= 1e-5 * size(model, x)


def _convs() -> dict[str, nn.Module]:
    """The same weights whatever ran before."""
    torch.manual_seed(0)
    return {
        "plain": nn.Conv2d(4, 6, 3, padding=1),
        "1x1 with stride": nn.Conv2d(6, 6, 1, stride=2),
        "uneven": nn.Conv2d(4, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False),
        "grouped": nn.Conv2d(4, 6, 3, groups=2),
        "one dimension": nn.Conv1d(4, 6, 5, stride=2, padding=2),
    }


CONVS = _convs()


def _inputs(conv: nn.Module) -> torch.Tensor:
    space = (6, 7) if isinstance(conv, nn.Conv2d) else (11,)
    return random_inputs(3, 5, conv.in_channels, *space)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CONVS)
def test_the_channel_scheme_has_the_least_output_error_of_every_rank(name: str) -> None:
    conv = CONVS[name]
    model, x = nn.Sequential(conv), _inputs(conv)
    groups = conv.groups
    rows = window_rows(conv, x)
    weights = conv.weight.detach().double().numpy().reshape(groups, conv.out_channels // groups, -1)
    least = sum(least_errors(weight, part) ** 2 for weight, part in zip(weights, rows, strict=True)) ** 0.5
    plain = sum(plain_errors(weight, part) ** 2 for weight, part in zip(weights, rows, strict=True)) ** 0.5
    for rank in range(1, len(least)):
        for aware, expected in ((True, least), (False, plain)):
            student = split(model, "0", "channel", (rank * groups,), [(x,)], aware)
            found = error(student, model, x)
            assert found == pytest.approx(expected[rank], rel=1e-4, abs=1e-4 * least[0])
    assert least[1] < 0.98 * plain[1], "the inputs are such that it matters"


SCHEMES = [
    ("plain", "spatial"),
    ("uneven", "spatial"),
    ("grouped", "spatial"),
    ("plain", "tucker"),
    ("uneven", "tucker"),
]
SCHEMES += [("grouped", "tucker"), ("one dimension", "tucker")]


@pytest.mark.parametrize(("name", "scheme"), SCHEMES)
@pytest.mark.parametrize("aware", [True, False])
def test_more_rank_is_never_worse_and_full_rank_is_exact(name: str, scheme: str, aware: bool) -> None:
    conv = CONVS[name]
    model, x = nn.Sequential(conv), _inputs(conv)
    kernel, groups = conv.kernel_size, conv.groups
    n_in, n_out = conv.in_channels // groups, conv.out_channels // groups
    if scheme == "spatial":
        ranks = [(r * groups,) for r in range(1, min(n_in * kernel[0], n_out * kernel[1]) + 1)]
    else:
        n_taps = int(np.prod(kernel))
        most = min(n_in, n_out * n_taps), min(n_out, n_in * n_taps)
        ranks = [(groups * min(r, most[0]), groups * min(r, most[1])) for r in range(1, max(most) + 1)]
    errors = [error(split(model, "0", scheme, r, [(x,)], aware), model, x) for r in ranks]
    scale = size(model, x)
    assert errors[-1] <= 1e-5 * scale
    assert errors[0] > 0.02 * scale
    if aware:  # plain factors minimise the weight's error, not the output's
        assert all(later <= earlier + 1e-5 * scale for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize("scheme", ["spatial", "tucker"])
def test_activation_aware_schemes_beat_plain_ones(scheme: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), random_inputs(0, 8, 8, 8, 8)
    ranks = (8,) if scheme == "spatial" else (4, 4)
    aware, plain = (error(split(model, "0", scheme, ranks, [(x,)], on), model, x) for on in (True, False))
    assert aware < 0.7 * plain


def test_few_bits_lose_least_when_the_factors_share_their_scale() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 32)), random_inputs(0, 400, 32)
    first, second = split(model, "0", "channel", (16,), [(x,)])[0]  # type: ignore[index,misc]
    norms = first(x).square().mean(0).sqrt() / second.weight.square().sum(0).sqrt()
    assert torch.allclose(norms, torch.ones_like(norms), rtol=1e-3)
