"""8-bit layers: arithmetic against numpy, placement, calibration, gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.compression.quantize import Surroundings, calibrate_, quantize_
from autocompress.compression.quantize.activations import ActivationQuantizer
from autocompress.compression.quantize.layers import QuantizedConv2d, QuantizedLinear
from autocompress.errors import CompressionError
from autocompress.graph import Layer, inspect_model
from autocompress.space.candidate import Candidate

LAYERS = (
    Layer("conv1", "conv2d", (8, 3, 3, 3), 0, 0, norm="bn1", relu=True, feeds=("conv2",), feeds_only_layers=True),
    Layer("conv2", "conv2d", (8, 8, 3, 3), 0, 0, norm="bn2"),
    Layer("fc", "linear", (4, 8), 0, 0),
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc((self.bn2(self.conv2(x)) + x).mean((2, 3)))


def _net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def observe(quantizer: ActivationQuantizer, x: Tensor) -> None:
    quantizer.calibrating = True
    quantizer(x)
    quantizer.calibrating = False
    quantizer.compute_qparams("minmax")


@given(st.floats(-50, 0), st.floats(0.01, 50), st.integers(0, 99))
def test_activations_round_as_numpy_does(low: float, high: float, seed: int) -> None:
    quantizer = ActivationQuantizer().eval()
    observe(quantizer, torch.tensor([low, high]))
    x = torch.rand(64, generator=torch.Generator().manual_seed(seed)) * (high - low) * 1.2 + low
    scale = (np.float32(high) - np.float32(low)) / np.float32(255)
    zero = np.clip(np.rint(-np.float32(low) / scale), 0, 255)
    levels = np.clip(np.rint(x.numpy() / scale) + zero, 0, 255)
    # the last bit of the scale may differ, so a value half way between two levels may go to either
    np.testing.assert_allclose(quantizer(x).numpy(), (levels - zero) * scale, atol=1.01 * scale)
    assert np.abs(quantizer(x).numpy() - (levels - zero) * scale).mean() < 0.05 * scale


def test_training_rounds_as_evaluation_does_and_passes_gradients() -> None:
    quantizer = ActivationQuantizer()
    x = (torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3).requires_grad_()
    observe(quantizer, x)
    in_training = quantizer.train()(x)
    in_training.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))  # type: ignore[arg-type]
    assert torch.allclose(in_training, quantizer.eval()(x), atol=1e-5)


def test_weights_have_one_scale_per_channel_and_127_levels() -> None:
    model = _net()
    quantize_(model, LAYERS, {"fc": 8})
    calibrate_(model, [(torch.randn(4, 3, 8, 8),)])
    assert isinstance(model.fc, QuantizedLinear)
    weight = model.fc.weight.detach().numpy()
    scale = np.abs(weight).max(1, keepdims=True) / 127
    np.testing.assert_allclose(model.fc.rounded_weight().detach().numpy(), np.rint(weight / scale) * scale, atol=1e-6)


def test_quantizers_stand_where_integer_kernels_round() -> None:
    model = _net()
    quantize_(model, LAYERS, {"conv1": 8, "conv2": 8, "fc": 8})
    assert isinstance(model.conv1, QuantizedConv2d)
    assert model.conv1.output_quantizer is None, "its only reader is 8-bit: that input quantizer stands there"
    assert isinstance(model.bn2.output_quantizer, ActivationQuantizer), "the add reads it: the unit ends after the norm"
    assert isinstance(model.fc, QuantizedLinear)
    assert model.fc.output_quantizer is None
    alone = _net()
    quantize_(alone, LAYERS, {"conv1": 8})
    assert alone.bn1.output_quantizer.non_negative, "a ReLU follows: the range starts at zero"  # type: ignore[union-attr]


def test_eight_bits_change_little_and_parameters_are_kept() -> None:
    model = _net()
    x = torch.randn(16, 3, 8, 8)
    quantized = copy.deepcopy(model)
    quantize_(quantized, LAYERS, {"conv1": 8, "conv2": 8, "fc": 8})
    calibrate_(quantized, [(x,)])
    noise = (quantized(x) - model(x)).pow(2).sum()
    assert 0 < noise < 10 ** (-30 / 10) * model(x).pow(2).sum(), "signal to noise above 30 dB"
    assert [name for name, _ in quantized.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), quantized.parameters(), strict=True))


def test_gradients_pass_and_training_moves_ranges_while_evaluation_does_not() -> None:
    model = _net()
    quantize_(model, LAYERS, {"conv1": 8, "conv2": 8, "fc": 8})
    calibrate_(model, [(torch.randn(4, 3, 8, 8),)])
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())
    assert isinstance(model.conv1, QuantizedConv2d)
    before = model.conv1.input_quantizer.high.clone()
    model(10 * torch.randn(4, 3, 8, 8))
    assert torch.equal(model.conv1.input_quantizer.high, before)
    model.train()(10 * torch.randn(4, 3, 8, 8))
    assert model.conv1.input_quantizer.high > before
    with torch.no_grad():
        model.conv1.weight.mul_(2)
    scale = model.conv1.weight_quantizers["weight"].scale.clone()
    model.eval()
    assert torch.allclose(model.conv1.weight_quantizers["weight"].scale, 2 * scale), (
        "leaving training fixes the weight's scale"
    )


def test_bad_input() -> None:
    with pytest.raises(CompressionError, match=r"one of \[32, 16, 8, '8w'.*, but layer 'fc' has 12"):
        quantize_(_net(), LAYERS, {"fc": 12})
    model = _net()
    quantize_(model, LAYERS, {"fc": 8})
    with pytest.raises(CompressionError, match="at least one calibration batch"):
        calibrate_(model, [])
    with pytest.raises(CompressionError, match="finite"):
        calibrate_(model, [(torch.full((1, 3, 8, 8), float("nan")),)])


def test_a_constant_zero_activation_and_a_zero_channel_stay_finite() -> None:
    model = _net()
    with torch.no_grad():
        model.fc.weight[1] = 0
    quantize_(model, LAYERS, {"fc": 8, "conv1": 8})
    calibrate_(model, [(torch.zeros(2, 3, 8, 8),)])
    assert torch.isfinite(model(torch.zeros(2, 3, 8, 8))).all()


class Named(nn.Module):
    """Embeddings that are added in a module called by keyword, and a residual block called by keyword."""

    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(300, 8), nn.Embedding(16, 8)

        def forward(self, ids: Tensor) -> Tensor:
            return self.words(ids) + self.places(torch.arange(ids.shape[1]))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, hidden: Tensor) -> Tensor:
            return hidden + self.outer(torch.relu(self.inner(hidden)))

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.block, self.head = self.Embeddings(), self.Block(), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.block(hidden=self.embeddings(ids=ids)))


def test_blocks_called_by_keyword_round_their_input_and_token_numbers_are_never_rounded() -> None:
    torch.manual_seed(0)
    model, ids = Named().eval(), torch.randint(0, 300, (64, 16))
    graph = inspect_model(model, (ids,))
    assert {branch.name for branch in graph.branches} >= {"block"}
    student = copy.deepcopy(model)
    quantize_(student, graph.layers, {layer.path: 8 for layer in graph.layers}, Surroundings(graph.branches))
    calibrate_(student, [(ids,)])
    expected, found = model(ids), student(ids)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert isinstance(student.block.input_quantizer, ActivationQuantizer)


def test_a_recurrent_layer_whose_weights_were_replaced_is_rounded_from_its_first_call() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.LSTM(4, 8)).eval(), (torch.randn(5, 2, 4),)
    graph = inspect_model(model, x)
    model[0].weight_ih_l0 = nn.Parameter(model[0].weight_ih_l0.detach().clone())  # as pruning does
    quantize_(model, graph.layers, {"0": "4w"})
    model.eval()
    with torch.no_grad():
        first, second = model(*x)[0], model(*x)[0]
    assert torch.equal(first, second)


class NormAct(nn.BatchNorm2d):
    """A batch norm with its activation, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


class NormActNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), NormAct(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3), NormAct(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn2(self.conv2(self.bn1(self.conv1(x)))).mean((2, 3)))


def test_a_norm_of_ones_own_keeps_its_forward_at_eight_bits() -> None:
    torch.manual_seed(0)
    model, x = NormActNet().eval(), torch.rand(16, 3, 12, 12)
    graph = inspect_model(model, (x,))
    candidate = Candidate(weight_bits={layer.path: 8 for layer in graph.layers})
    student = compress(model, candidate, (x,), [(x,)], graph=graph)
    with torch.no_grad():
        given, expected = student(x), model(x)
    assert float((given - expected).abs().max()) < 0.05 * float(expected.abs().max())
    middle = student.get_submodule("bn2")(torch.randn(2, 8, 4, 4)).detach()
    assert float(middle.min()) >= 0, "the activation is still there"
    assert isinstance(student.get_submodule("bn2"), NormAct)
    assert torch.equal(copy.deepcopy(student)(x), given)
