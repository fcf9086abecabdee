"""What a rank costs and which are offered: against counting by hand and by torch."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.graph import Layer, ModelGraph
from autocompress.space.rank_choice import parse_rank
from autocompress.space.ranks import Split, cost, largest_ranks, offered_ranks, pays, ranks_of_ratio, split_of
from autocompress.space.search_space import SearchSpace


def conv(n_out: int, n_in: int, kernel: int, stride: int = 1, groups: int = 1) -> Layer:
    shape = (n_out, n_in // groups, kernel, kernel)
    return Layer("conv", "conv2d", shape, 0, 0, groups=groups, stride=(stride, stride))


def linear(n_out: int, n_in: int) -> Layer:
    return Layer("fc", "linear", (n_out, n_in), 0, 0)


@given(st.floats(0.01, 1), st.integers(1, 512), st.integers(1, 512))
def test_ranks_are_possible_lie_on_the_grid_and_pay(ratio: float, n_out: int, n_in: int) -> None:
    layer = linear(n_out, n_in)
    (rank,) = ranks_of_ratio(layer, "channel", ratio)
    assert 1 <= rank <= min(n_out, n_in)
    assert rank % 8 == 0 or rank == min(n_out, n_in)
    assert pays(layer, "channel", [rank]) == (n_out * rank + rank * n_in < n_out * n_in)
    assert (rank,) in offered_ranks(layer, "channel")


@given(
    st.sampled_from(["channel", "spatial", "tucker"]),
    st.sampled_from([(32, 32, 3), (64, 16, 5), (16, 64, 3), (24, 8, 2)]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 4]),
    st.floats(0.01, 1),
)
def test_costs_are_the_multiplications_of_the_factors(
    scheme: str, sizes: tuple[int, int, int], stride: int, groups: int, ratio: float
) -> None:
    n_out, n_in, k = sizes
    layer = conv(n_out, n_in, k, stride, groups)
    ranks = ranks_of_ratio(layer, scheme, ratio)
    assert all(
        rank % groups == 0 and rank <= most for rank, most in zip(ranks, largest_ranks(layer, scheme), strict=True)
    )
    if scheme == "channel":
        expected = ranks[0] * n_in * k * k + n_out * ranks[0]
    elif scheme == "spatial":
        expected = ranks[0] * n_in * k * stride + n_out * ranks[0] * k
    else:
        expected = ranks[0] * n_in * stride**2 + ranks[0] * ranks[1] * k * k + n_out * ranks[1]
    assert cost(layer, scheme, ranks) * groups == expected
    assert cost(layer, None) * groups == n_out * n_in * k * k


def test_no_rank_above_the_break_even_is_offered() -> None:
    rules = [
        {
            "match": "re:.*",
            "rank_ratio": [
                None,
                1.0,
                0.75,
                0.5,
                0.25,
                *(f"{s}:{r}" for s in ("spatial", "tucker") for r in (1.0, 0.75, 0.5, 0.25, 0.125)),
            ],
        }
    ]
    layers = (
        conv(64, 64, 3),
        conv(64, 32, 3, 2),
        linear(384, 384),
        linear(10, 64),
        conv(32, 32, 1),
        conv(32, 32, 5, 1, 32),
    )
    for layer in layers:
        graph = ModelGraph((layer,), (), (), (), 0, 0)
        offered = [choice for knob in SearchSpace.from_rules(graph, rules).knobs for choice in knob.choices]
        for choice in offered:
            if choice is not None:
                asked = parse_rank(choice)
                ranks = ranks_of_ratio(layer, asked.scheme, asked.share)
                assert cost(layer, asked.scheme, ranks) < cost(layer, None), (layer, choice)
        left_out = {0.5, 0.25, "spatial:0.25", "tucker:0.5"} - set(offered)
        expected = {
            (64, 64, 3, 3): set(),
            (64, 32, 3, 3): set(),
            (384, 384): {"spatial:0.25", "tucker:0.5", 0.5},
            (10, 64): {"spatial:0.25", "tucker:0.5"},
            (32, 32, 1, 1): {0.5, "spatial:0.25", "tucker:0.5"},
            (32, 1, 5, 5): {0.5, 0.25, "tucker:0.5"},
        }[layer.weight_shape]
        assert left_out == expected, layer


def test_an_embedding_pays_in_parameters_and_a_recurrent_layer_level_by_level() -> None:
    table = Layer("tokens", "embedding", (1000, 64), 0, 0)
    assert largest_ranks(table, "channel") == (64,)
    assert cost(table, "channel", [16]) == 1000 * 16 + 16 * 64
    assert pays(table, "channel", [56]) and not pays(table, "channel", [64])
    lstm = Layer("lstm", "lstm", (256, 64), 0, 0, input_shapes=((512, 10), (512, 128)))
    assert largest_ranks(lstm, "channel") == (10, 128)
    choice = parse_rank(0.75)
    assert split_of(lstm, choice, ranks_of_ratio(lstm, "channel", 0.75)) == Split("channel", (8, 96))
    assert split_of(lstm, parse_rank(1.0), (10, 96)) == Split("channel", (0, 96))
    assert split_of(lstm, parse_rank(1.0), (10, 128)) is None


def test_hidden_weights_pay_below_two_thirds_of_the_state() -> None:
    lstm = Layer("lstm", "lstm", (256, 64), 0, 0, input_shapes=((256, 10), (256, 64)))
    assert largest_ranks(lstm, "recurrent") == (63, 63)
    assert split_of(lstm, parse_rank("recurrent:0.5"), (40, 48)) == Split("recurrent", (40, 0))
    assert 40 * (64 + 256 + 64) < 256 * 64 < 48 * (64 + 256 + 64)


@pytest.mark.parametrize("split", [Split("channel", (8,)), Split("tucker", (8, 16), parse_rank("0.5+bits:4").residual)])
def test_splits_are_plain_json(split: Split) -> None:
    assert Split.from_dict(split.to_dict()) == split
    with pytest.raises(ValueError, match="radial"):
        Split.from_dict({**split.to_dict(), "scheme": "radial"})


def test_offered_ranks_rise() -> None:
    for layer, scheme in ((conv(64, 32, 3), "tucker"), (conv(64, 64, 3), "spatial"), (linear(100, 30), "channel")):
        offered = offered_ranks(layer, scheme)
        assert offered[-1] == largest_ranks(layer, scheme)
        assert all(all(a <= b for a, b in zip(one, other, strict=True)) for one, other in itertools.pairwise(offered))
        steps = {
            math.gcd(rank, 8) for ranks in offered[:-1] for rank in ranks if rank not in largest_ranks(layer, scheme)
        }
        assert steps <= {8}
