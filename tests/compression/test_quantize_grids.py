"""Range rules, code tables, groups, learned steps and bias correction, against numpy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autocompress.compression import compress
from autocompress.compression.quantize import RANGES, correct_bias_, learn_scales_
from autocompress.compression.quantize.rounding import learned_step
from autocompress.compression.quantize.weights import CodebookQuantizer, GroupwiseInt4Quantizer
from autocompress.errors import CompressionError, InputError
from autocompress.space.candidate import Candidate

seeds = st.integers(0, 1000)


@given(seeds, st.floats(0.01, 0.5))
@settings(max_examples=15)
def test_learned_steps_have_the_gradients_of_the_paper(seed: int, step: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(50, generator=generator).requires_grad_()
    scale = torch.tensor(step, requires_grad=True)
    low, high = -4.0, 3.0
    y = learned_step(x, scale, low, high)
    upstream = torch.randn(50, generator=generator)
    y.backward(upstream)  # type: ignore[no-untyped-call]
    v, g = x.detach().numpy() / np.float32(step), upstream.numpy()
    inside = (v >= low) & (v <= high)
    np.testing.assert_allclose(y.detach().numpy(), np.clip(np.rint(v), low, high) * np.float32(step), atol=1e-6)
    assert x.grad is not None
    assert scale.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), g * inside, atol=1e-6)
    slope = np.where(inside, np.rint(v) - v, np.clip(v, low, high))
    np.testing.assert_allclose(scale.grad.numpy(), (g * slope).sum() / np.sqrt(50 * high), rtol=1e-3, atol=1e-4)


@given(seeds)
@settings(max_examples=10)
def test_groups_round_as_numpy_does(seed: int) -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed))
    weight[2] = 0
    quantizer = GroupwiseInt4Quantizer(5, 40)
    quantizer.refresh(weight)
    found = quantizer.rounded(weight).numpy()
    for row in range(5):
        for start in (0, 32):
            part = weight[row, start : start + 32].numpy()
            low, high = min(part.min(), 0), max(part.max(), 0)
            scale = (high - low) / np.float32(15) or np.float32(1)
            zero = np.clip(np.rint(-low / scale), 0, 15)
            expected = (np.clip(np.rint(part / scale) + zero, 0, 15) - zero) * scale
            np.testing.assert_allclose(found[row, start : start + 32], expected, atol=1e-6 + 1e-3 * scale)


@pytest.mark.parametrize("bits", [2, 3, 5, 7])
def test_a_code_table_beats_the_even_grid_and_keeps_zeros(bits: int) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) ** 3
    weight[:, ::4] = 0
    quantizer = CodebookQuantizer(8, bits).eval()
    quantizer.refresh(weight)
    found = quantizer.rounded(weight)
    assert len(np.unique(np.round((found / quantizer.scale[:, None]).numpy(), 5))) <= 2**bits
    assert bool((found[:, ::4] == 0).all())
    peak = weight.abs().amax(1, keepdim=True)
    top = 2 ** (bits - 1) - 1
    even = (weight / peak * top).round() * peak / top
    assert (found - weight).square().sum() < (even - weight).square().sum()


def test_range_rules() -> None:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(100_000, generator=generator)
    sample[0] = 50.0
    lows, highs = torch.tensor([-3.0, -4.0]), torch.tensor([3.0, 50.0])
    spans = {name: [v.item() for v in rule(lows, highs, sample, 256)] for name, rule in RANGES.items()}
    assert spans["minmax"] == [-4.0, 50.0]
    assert spans["moving_average"] == pytest.approx([-3.3, 3 + 0.3 * 47])
    assert spans["percentile"] == pytest.approx(np.percentile(sample.numpy(), [0.01, 99.99]), abs=0.1)

    def error(low: float, high: float) -> float:
        scale = (high - low) / 255
        zero = round(-low / scale)
        rounded = (np.clip(np.rint(sample.numpy() / scale) + zero, 0, 255) - zero) * scale
        return float(np.square(rounded - sample.numpy()).mean())

    assert error(*spans["mse"]) <= error(*spans["minmax"])
    with pytest.raises(InputError, match=r"ranges in \['minmax'"):
        from autocompress.config import QuantizeSettings

        QuantizeSettings(ranges="widest")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)).eval()


X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def test_bias_correction_keeps_the_mean_output() -> None:
    model = net()
    student = compress(model, Candidate(weight_bits=dict.fromkeys(["0", "2", "4"], 3)), (X,), [(X,)])
    corrected = copy.deepcopy(student)
    correct_bias_(corrected, model, {}, [(X,)])
    with torch.no_grad():
        before, after = ((m(X).mean(0) - model(X).mean(0)).abs().max() for m in (student, corrected))
    assert after < 1e-5 < before


def test_learned_scales_train_and_keep_their_names() -> None:
    model = net()
    student = compress(model, Candidate(weight_bits=dict.fromkeys(["0", "2", "4"], 8)), (X,), [(X,)])
    names, expected = set(student.state_dict()), student(X).detach()
    learn_scales_(student)
    assert set(student.state_dict()) == names
    torch.testing.assert_close(student(X), expected, atol=0.05, rtol=0.05)
    student.train()
    student(X).square().mean().backward()
    scales = {name: p for name, p in student.named_parameters() if name.endswith("scale")}
    assert len(scales) == 3 + sum(name.endswith("quantizer.scale") for name in names)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in scales.values())


def test_bad_weights_and_batches() -> None:
    model = net()
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = float("inf")  # type: ignore[index,operator]
    with pytest.raises(CompressionError, match=r"finite to be quantized, but 2\.weight has NaN or infinity"):
        compress(model, Candidate(weight_bits={"2": "4w"}), (X,), [(X,)])
    with pytest.raises(CompressionError, match="at least one calibration batch"):
        compress(net(), Candidate(weight_bits={"2": 8}), (X,))
    with pytest.raises(InputError, match=r"`weight_bits` in \[32, 16, 8, '8w'.* but '2' has 12"):
        Candidate(weight_bits={"2": 12})
    zero = net()
    with torch.no_grad():
        zero[2].weight[1] = 0  # type: ignore[index,operator]
    for bits in (16, 8, "8w", "4w", 3):
        student = compress(zero, Candidate(weight_bits={"2": bits}), (X,), [(X,)])
        assert bool(student(X).isfinite().all())
        assert bool((student[2].rounded_weight()[1] == 0).all())  # type: ignore[index,operator]
