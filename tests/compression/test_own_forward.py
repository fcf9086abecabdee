"""Layers with a forward of their own at 8 bits: the operands of their one call are rounded, all else is theirs."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.compression.quantize import without_rounding_
from autocompress.compression.quantize.activations import ActivationQuantizer
from autocompress.graph import inspect_model
from autocompress.runtimes import check_parity, runtime_named
from autocompress.space.candidate import Candidate
from tests.runtimes.integer_nets import ConvSame, StandardisedConv, settled

X = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1


def rounded(weight: Tensor, level_max: int = 63) -> Tensor:
    """By row to the nearest of `level_max` steps, in numpy."""
    matrix = weight.detach().numpy().reshape(len(weight), -1)
    scale = np.abs(matrix).max(1, keepdims=True) / level_max
    return torch.from_numpy((np.rint(matrix / scale) * scale).reshape(weight.shape))


def eight_bit(model: nn.Module) -> nn.Module:
    graph = inspect_model(model, (X,))
    return compress(model, Candidate(weight_bits={layer.path: 8 for layer in graph.layers}), (X,), [(X,)], graph=graph)


def test_a_layer_rounds_its_operands_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(ConvSame(3, 8, 3, stride=2, bias=False)).eval()
    student = eight_bit(model)
    low, high = float(X.min()), float(X.max())
    scale = (high - low) / 255
    zero = round(-low / scale)
    x = ((X / scale).round() + zero).clamp(0, 255).sub(zero) * scale
    plain = copy.deepcopy(model)
    with torch.no_grad():
        plain[0].weight.copy_(rounded(model[0].weight))  # type: ignore[operator,union-attr,arg-type]
        expected, found = plain(x), student(X)
    output = student[0].output_quantizer  # type: ignore[index]
    expected = expected.clamp(float(output.low), float(output.high))
    torch.testing.assert_close(found, expected, atol=float(output.scale) * 0.51, rtol=0)


def test_a_computed_weight_is_rounded_after_it_was_computed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(StandardisedConv(3, 8, 3)).eval()
    student = eight_bit(model)
    student(X)
    layer = student[0]  # type: ignore[index]
    variance, mean = torch.var_mean(model[0].weight, dim=(1, 2, 3), keepdim=True, correction=0)
    computed = (model[0].weight - mean) / torch.sqrt(variance + 1e-6)
    torch.testing.assert_close(layer.weight_quantizers["weight"](layer.seen_weight), rounded(computed))


@pytest.mark.parametrize("name", ["lite", "computed weights"])
def test_training_goes_on_and_names_stay(name: str) -> None:
    model, inputs = settled(name)
    graph = inspect_model(model, inputs[0])
    candidate = Candidate(weight_bits={layer.path: 8 for layer in graph.layers})
    student = compress(model, candidate, inputs[0], inputs, graph=graph)
    assert [key for key, _ in student.named_parameters()] == [key for key, _ in model.named_parameters()]
    again = copy.deepcopy(student).train()
    x = torch.cat([item[0] for item in inputs])
    again(x).square().mean().backward()
    silent = [
        key for key, item in again.named_parameters() if item.grad is None or not bool(item.grad.isfinite().all())
    ]
    assert not silent
    with torch.no_grad():
        for item in again.parameters():
            item.sub_(0.01 * item.grad)  # type: ignore[arg-type,operator]
        moved = again.eval()(x)
    assert bool(moved.isfinite().all()) and not torch.equal(moved, student(x))
    without_rounding_(again)
    kinds = [type(module) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [type(module) for module in again.modules() if isinstance(module, nn.Conv2d | nn.Linear)] == kinds


@pytest.mark.parametrize("name", ["lite", "computed weights", "efficientnet"])
def test_pytorchs_own_file_gives_what_the_student_gives(name: str, tmp_path: Path) -> None:
    model, inputs = settled(name)
    graph = inspect_model(model, inputs[0])
    candidate = Candidate(weight_bits={layer.path: 8 for layer in graph.layers})
    student = compress(model, candidate, inputs[0], inputs, graph=graph)
    runtime = runtime_named("torch")
    file = runtime.export(student, inputs[0], tmp_path)
    assert check_parity(student, runtime.load, file, inputs[0]).relative_error < 0.02


def test_pruned_and_dropped_blocks_keep_their_rounding() -> None:
    model, inputs = settled("resnet8")
    graph = inspect_model(model, inputs[0])
    bits = {layer.path: 8 for layer in graph.layers}
    groups = {group.name: 0.5 for group in graph.groups}
    for drop in ({}, {branch.name for branch in graph.branches}):
        candidate = Candidate(prune_ratio=groups, weight_bits=bits, drop=frozenset(drop))
        student = compress(model, candidate, inputs[0], inputs, graph=graph)
        assert bool(student(*inputs[0]).isfinite().all())


@given(st.floats(0.05, 40.0), st.floats(0.01, 3.0))
def test_the_grid_never_goes_beyond_the_ceiling(ceiling: float, share: float) -> None:
    quantizer = ActivationQuantizer(True, ceiling)
    quantizer.calibrating = True
    quantizer(torch.tensor([0.0, ceiling * share]))
    quantizer.calibrating = False
    quantizer.compute_qparams("minmax")
    assert np.float32(255) * np.float32(float(quantizer.step_size().detach())) <= np.float32(ceiling)
    quantizer.learn_()
    with torch.no_grad():
        quantizer.scale.mul_(3.0)
    assert np.float32(255) * np.float32(float(quantizer.step_size().detach())) <= np.float32(ceiling)
    x = torch.linspace(-1, 2 * ceiling, 50)
    with torch.no_grad():
        torch.testing.assert_close(F.hardtanh(quantizer.eval()(x), 0.0, float(np.float32(ceiling))), quantizer(x))
