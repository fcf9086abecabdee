"""Costs of layers counted by hand."""

from __future__ import annotations

import pytest

from autocompress.latency.candidate_encoder import LayerShape
from autocompress.latency.layer_costs import layer_cost, matrices_of_text
from autocompress.space.candidate import Precision


def shape(kind: str, n_out: int, n_in: int, kernel: tuple[int, ...] = (), n_macs: int = 0) -> LayerShape:
    stride = (1,) * len(kernel)
    return LayerShape("x", kind, n_out, n_in, kernel, n_macs, "", False, 1, stride, (), True, ())


CONV = shape("conv2d", 32, 16, (3, 3), 64 * 32 * 16 * 9)  # 64 output positions
WHOLE: tuple[float | str | None, int] = (None, 8)


@pytest.mark.parametrize(
    ("bits", "weight_bytes", "value_bytes"), [(32, 4, 4), (8, 1, 1), ("8w", 8.5 / 8, 4), (4, 0.5, 4)]
)
def test_a_convolution(bits: Precision, weight_bytes: float, value_bytes: float) -> None:
    cost = layer_cost(CONV, 8, 16, WHOLE, bits)
    n_weights = 8 * 16 * 9
    assert (cost.macs, cost.n_launches) == (64 * n_weights, 1)
    assert cost.weight_bytes == cost.read_bytes == n_weights * weight_bytes
    assert cost.activation_bytes == 64 * (8 + 16) * value_bytes


def test_a_split_convolution_has_two_kernels() -> None:
    cost = layer_cost(CONV, 32, 16, (0.5, 8), 32)
    assert cost.n_launches == 2
    assert cost.macs == 64 * (16 * 16 * 9 + 32 * 16), "half of the largest rank 32"
    assert cost.macs < layer_cost(CONV, 32, 16, WHOLE, 32).macs


def test_an_embedding_reads_no_whole_table() -> None:
    cost = layer_cost(shape("embedding", 64, 1000, (), 64000), 64, 1000, WHOLE, 8)
    assert (cost.macs, cost.read_bytes, cost.weight_bytes) == (0.0, 0.0, 64 * 1000)


def test_an_lstm_reads_inputs_and_its_state() -> None:
    lstm = shape("lstm", 32, 16, (), 10 * 4 * 32 * (16 + 32))  # ten steps
    cost = layer_cost(lstm, 24, 16, WHOLE, 32)
    assert cost.macs == 10 * 4 * 24 * (16 + 24)
    assert cost.n_launches == 2 and matrices_of_text(lstm, 24, 16, "0") == [(96, 16), (96, 24)]


def test_ranks_as_text() -> None:
    assert matrices_of_text(CONV, 32, 16, "0") == [(32, 16, 3, 3)]
    assert [factor[0] for factor in matrices_of_text(CONV, 32, 16, "8")] == [8, 32]
    assert len(matrices_of_text(CONV, 32, 16, "tucker:8x16")) == 3
