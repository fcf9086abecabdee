from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compression.prune import remove_channels_
from autocompress.graph import inspect_model
from tests.graph.masking import masked_copy, some_channels
from tests.graph.nets import CNNS, randomize, unit


class RandomNet(nn.Module):
    """A chain of steps, each reading the last stream: plain, residual, dense, split, depthwise, gate, pad, grouped."""

    def __init__(self, steps: list[str], width: int) -> None:
        super().__init__()
        self.steps = steps
        self.stem = unit(3, width)
        self.parts = nn.ModuleList()
        for step in steps:
            width = self._add(step, width)
        self.head = nn.Linear(width, 3)

    def _add(self, step: str, width: int) -> int:
        if step == "plain":
            self.parts.append(unit(width, width + 4))
            return width + 4
        if step == "dense":
            self.parts.append(unit(width, 4))
            return width + 4
        if step == "residual":
            self.parts.append(nn.Sequential(unit(width, 6), nn.Conv2d(6, width, 1)))
        elif step == "split":
            self.parts.append(unit(width // 2, width // 2))
        elif step == "depthwise":
            self.parts.append(unit(width, width, groups=width))
        elif step == "grouped":
            self.parts.append(unit(width, width, groups=2))
        elif step == "gate":
            self.parts.append(nn.Sequential(nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1), nn.Sigmoid()))
        elif step == "pad":
            self.parts.append(nn.ZeroPad3d((0, 0, 0, 0, 2, 2)))
            return width + 4
        return width

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step, part in zip(self.steps, self.parts, strict=True):
            if step == "dense":
                x = torch.cat([x, part(x)], 1)
            elif step == "residual":
                x = x + part(x)
            elif step == "split":
                left, right = x.chunk(2, 1)
                x = torch.cat([part(right), left], 1)
            elif step == "gate":
                x = x * part(x.mean((2, 3), keepdim=True))
            else:
                x = part(x)
        return self.head(x.mean((2, 3)))


STEPS = ("plain", "residual", "dense", "split", "depthwise", "grouped", "gate", "pad")


@settings(max_examples=25)
@given(
    steps=st.lists(st.sampled_from(STEPS), max_size=4),
    width=st.sampled_from([4, 8]),
    share=st.sampled_from([0.25, 0.5, 0.8]),
    seed=st.integers(0, 99),
)
def test_a_pruned_random_net_equals_the_masked_original(steps: list[str], width: int, share: float, seed: int) -> None:
    model = randomize(RandomNet(steps, width), seed).eval()
    x = torch.rand(2, 3, 6, 6)
    graph = inspect_model(model, x)
    assert not [item for item in graph.frozen if "pruned copy" in item.reason]
    removed = some_channels(graph, share, seed)
    expected = masked_copy(model, graph, removed)(x)
    remove_channels_(model, graph, removed)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("name", CNNS)
def test_every_habit_prunes_exactly(name: str, share: float) -> None:
    make, size = CNNS[name]
    model = randomize(make()).eval()
    x = torch.rand(2, *size)
    graph = inspect_model(model, x)
    removed = some_channels(graph, share)
    expected = masked_copy(model, graph, removed)(x)
    before = sum(parameter.numel() for parameter in model.parameters())
    remove_channels_(model, graph, removed)
    assert sum(parameter.numel() for parameter in model.parameters()) < before
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
