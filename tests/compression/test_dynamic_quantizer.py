"""Ranges found at run time: the grid of ONNX Runtime's DynamicQuantizeLinear, for each sample on its own."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from autocompress.compression.quantize.activations import DynamicQuantizer


@pytest.fixture(scope="module")
def engine() -> ort.InferenceSession:
    """Rounds a whole tensor to 256 levels and gives their values."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "rounding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "m"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def rounded_by(engine: ort.InferenceSession, sample: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(engine.run(None, {"x": sample.numpy()})[0]))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sample_dim=st.integers(0, 1),
    offset=st.floats(-5, 5),
    spread=st.floats(0.01, 100),
)
def test_each_sample_is_rounded_as_the_engine_rounds_it_alone(
    seed: int, sample_dim: int, offset: float, spread: float, engine: ort.InferenceSession
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(1.0, spread, 3).reshape([3, 1, 1] if sample_dim == 0 else [1, 3, 1])
    shape = (3, 7, 5) if sample_dim == 0 else (7, 3, 5)
    x = (torch.randn(shape, generator=generator) + offset) * sizes
    ours = DynamicQuantizer(sample_dim).eval()(x)
    for k in range(3):
        theirs, step = rounded_by(engine, x.select(sample_dim, k)), step_of(x.select(sample_dim, k))
        apart = (ours.select(sample_dim, k) - theirs).abs() / step
        assert apart.max() < 1.01 and (apart > 0.01).float().mean() < 0.1, "at most a tie falls to the other side"


def step_of(sample: Tensor) -> float:
    values = sample.numpy()
    return float((max(values.max(), 0.0) - min(values.min(), 0.0)) / 255)


def test_one_sequence_without_a_batch_has_one_range(engine: ort.InferenceSession) -> None:
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 30, 7)[:, None]
    torch.testing.assert_close(DynamicQuantizer(0).eval()(x), rounded_by(engine, x))


def test_zeros_stay_zeros_and_gradients_pass() -> None:
    quantizer = DynamicQuantizer(0)
    assert torch.equal(quantizer(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))
    x = torch.randn(2, 3, 4, requires_grad=True)
    quantizer(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    quantizer.through = True
    assert quantizer(x) is x
