"""The residual of a split layer: how much it helps, its size, and that it survives training and merging."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autocompress.compression import merge
from autocompress.compression.factorize import factorize_
from autocompress.compression.low_rank.decomposition import factors_and_residual
from autocompress.compression.low_rank.layers import ParallelSum
from autocompress.compression.low_rank.source import LowRankSource
from autocompress.compression.quantize import stored_bits as stored_bits_of
from autocompress.compression.quantize.placement import rounded
from autocompress.compression.sparsify import sparse_weights
from autocompress.space.rank_choice import Residual, parse_rank
from autocompress.space.ranks import Split, split_of, stored_bits
from tests.compression.low_rank.reference import error, graph_of, layer_at, random_inputs, size, split

LAYERS = [nn.Linear(24, 20), nn.Conv2d(8, 12, 3, padding=1, groups=2), nn.Conv1d(8, 12, 3)]


def _inputs(layer: nn.Module) -> torch.Tensor:
    shape = {nn.Linear: (200, 24), nn.Conv2d: (6, 8, 7, 7), nn.Conv1d: (6, 8, 30)}[type(layer)]  # type: ignore[index]
    return random_inputs(0, *shape)


def with_factors(model: nn.Module, x: torch.Tensor, ranks: tuple[int, ...], residual: Residual) -> nn.Module:
    student = copy.deepcopy(model)
    layer = layer_at(model, "0")
    factorize_(student, layer, Split("channel", ranks, residual), LowRankSource(model, graph_of(layer), [(x,)]))
    return student


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_sparse_residual_lowers_the_error_and_keeps_its_zeros(layer: nn.Module) -> None:
    model, x = nn.Sequential(copy.deepcopy(layer)), _inputs(layer)
    student = with_factors(model, x, (4,), Residual(share=0.1))
    both = student[0]  # type: ignore[index]
    assert isinstance(both, ParallelSum) and type(both.residual) is type(layer) and both.residual.bias is None
    weight = both.residual.weight
    assert [id(each) for each in sparse_weights(student)] == [id(weight)], "so a fine-tune keeps the zeros"
    assert int(weight.count_nonzero()) == round(0.1 * weight.numel())
    assert error(student, model, x) < 0.9 * error(split(model, "0", "channel", (4,), [(x,)]), model, x)
    assert error(merge(both), student, x) <= 1e-5 * size(student, x)
    student.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_the_low_rank_part_keeps_what_the_bits_lose() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 48), random_inputs(0, 400, 48)
    second = (x.double().mT @ x.double() / len(x))[None]
    weight = layer.weight.detach()[None].double()
    (first, last), kept = factors_and_residual(weight, second, "channel", [8], Residual(bits=3))
    stored = rounded(weight[0].float(), 3).double()
    assert all(len(row.unique()) <= 2**3 for row in kept[0])

    def output_error(other: torch.Tensor) -> float:
        return float((x.double() @ (weight[0] - other).mT).norm())

    assert output_error((last @ first + kept)[0]) < 0.5 * output_error(stored)
    assert output_error((last @ first + kept)[0]) < 0.5 * output_error((last @ first)[0])


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_residual_of_few_bits_is_trained_merged_and_saved_on_its_grid(bits: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 48)), random_inputs(0, 400, 64)
    student = with_factors(model, x, (8,), Residual(bits=bits))
    both = student[0]  # type: ignore[index]
    assert type(both.residual).__name__ == "QuantizedLinear"
    assert stored_bits_of(both.residual) == bits
    assert error(student, model, x) < 0.8 * error(split(model, "0", "channel", (8,), [(x,)]), model, x)
    assert error(merge(both), student, x) <= 1e-5 * size(student, x)
    optimizer = torch.optim.SGD(student.train().parameters(), lr=1e-3)
    (student(x) - model(x).detach()).square().mean().backward()
    optimizer.step()
    student.eval()
    stored = both.residual.rounded_weight()
    own = both.residual.weight_quantizers["weight"]
    torch.testing.assert_close(own.rounded(stored), stored, rtol=1e-4, atol=1e-5)
    fresh = with_factors(model, x, (8,), Residual(bits=bits))
    fresh.load_state_dict(student.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(x), student(x))


def test_bytes_decide_whether_a_residual_is_offered() -> None:
    layer = layer_at(nn.Sequential(nn.Linear(64, 64)), "0")
    split_ = Split("channel", (8,), Residual(share=0.25))
    assert stored_bits(layer, split_) == 32 * 8 * 128 + 64 * 64 + 32 * 1024
    assert stored_bits(layer, Split("channel", (8,), Residual(bits=4))) == 32 * 8 * 128 + 4 * 64 * 64
    assert split_of(layer, parse_rank("0.125+sparse:0.25"), (8,)) == split_
    assert split_of(layer, parse_rank("0.5+sparse:0.25"), (32,)) is None
