from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compression.prune import remove_channels_
from autocompress.graph import inspect_model
from tests.graph.masking import masked_copy, some_channels
from tests.graph.nets import (
    CNNS,
    Attention,
    FusedAttention,
    GatedMlp,
    GroupedQueryAttention,
    PackedAttention,
    randomize,
    unit,
)


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


class OverTime(nn.Module):
    """A convolution in groups over time, batch norm, ReLU."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=groups)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x.transpose(1, 2)))).transpose(1, 2)


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda width: nn.Sequential(nn.Linear(width, width + 4), nn.ReLU(), nn.Linear(width + 4, width)),
    "norm": nn.LayerNorm,
    "lstm": lambda width: nn.LSTM(width, width, 2, batch_first=True),
    "two-way lstm": lambda width: nn.LSTM(width, width // 2, batch_first=True, bidirectional=True),
    "gru": lambda width: nn.GRU(width, width, batch_first=True),
    "two-way gru": lambda width: nn.GRU(width, width // 2, 2, batch_first=True, bidirectional=True),
    "attention": lambda width: Attention(width, 4),
    "fused attention": lambda width: FusedAttention(width, 4),
    "packed attention": lambda width: PackedAttention(width, 4),
    "grouped queries": lambda width: GroupedQueryAttention(width, 4, 2),
    "gated": lambda width: GatedMlp(width, 12),
    "grouped conv": lambda width: OverTime(width, 2),
    "depthwise conv": lambda width: OverTime(width, width),
}


class RandomSequenceNet(nn.Module):
    """A chain of layers over a sequence, each alone or, where the flag says so, added to what it reads."""

    def __init__(self, steps: list[tuple[str, bool]], width: int) -> None:
        super().__init__()
        self.inward, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.parts = nn.ModuleList(LAYERS[name](width) for name, _ in steps)
        self.residual = [flag for _, flag in steps]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inward(x))
        for part, residual in zip(self.parts, self.residual, strict=True):
            found = part(x)
            y = found[0] if isinstance(part, nn.RNNBase) else found
            x = x + y if residual else y
        return self.head(torch.tanh(x).mean(1))


def check_sequence_net(steps: list[tuple[str, bool]], width: int, share: float, seed: int) -> None:
    model = randomize(RandomSequenceNet(steps, width), seed).eval()
    x = torch.rand(2, 6, 5, generator=torch.Generator().manual_seed(seed))
    graph = inspect_model(model, x)
    assert graph.groups
    assert not [item for item in graph.frozen if item.what == "channels" and "pruned copy" in item.reason]
    removed = some_channels(graph, share, seed)
    expected = masked_copy(model, graph, removed)(x)
    remove_channels_(model, graph, removed)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=0)


@settings(max_examples=15)
@given(
    steps=st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), st.booleans()), min_size=1, max_size=4),
    width=st.sampled_from([8, 16]),
    share=st.sampled_from([0.25, 0.5, 0.8]),
    seed=st.integers(0, 99),
)
def test_a_pruned_random_sequence_net_equals_the_masked_original(
    steps: list[tuple[str, bool]], width: int, share: float, seed: int
) -> None:
    check_sequence_net(steps, width, share, seed)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_of_the_random_sequence_nets_prunes_exactly(name: str, residual: bool) -> None:
    check_sequence_net([(name, residual)], 16, 0.5, 7)


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
