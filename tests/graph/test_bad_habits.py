"""Habits that break naive pruning: shared modules, stray parameters, in-place edits, control flow on data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.compression.prune import remove_channels_
from autocompress.graph import ModelGraph, inspect_model
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from tests.graph.masking import masked_copy, some_channels
from tests.graph.nets import randomize, unit


class SharedUnderTwoNames(nn.Module):
    """One module at two paths, between layers of the same width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.two = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(torch.relu(self.stem(x)))))))


class SharedOnTwoStreams(nn.Module):
    """A block used on two inputs, whose results are subtracted (a siamese net)."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.head = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.tower(x) - self.tower(x.flip(0))).abs())


class NormUsedTwice(nn.Module):
    """A batch norm and an activation that serve two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(1, 8, 1), nn.Conv1d(8, 8, 1)
        self.norm, self.act, self.head = nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.one(x[:, None])))
        return self.head(self.act(self.norm(self.two(x))).mean(-1))


class StrayParameters(nn.Module):
    """Parameters of the model itself, in a list, and a weight of a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8, 4))
        self.scales = nn.ParameterList([torch.rand(8), torch.rand(1, 6)])
        self.uncalled, self.head = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x @ self.weight.T) * self.scales[0]
        return self.head(torch.relu(F.linear(x, self.uncalled.weight, self.uncalled.bias)) + self.scales[1])


class Edits(nn.Module):
    """Edits in place that touch all channels alike: a border set to 0, a view scaled, a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side, self.head = unit(3, 8), unit(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x[:, :, 0] = 0
        x[..., 1:].mul_(2)
        kept = x
        kept += self.side(x.clone())
        return self.head(x.clamp_(max=3.0).mean((2, 3)))


HANDLED: dict[str, tuple[type[nn.Module], tuple[int, ...], dict[str, int]]] = {
    "shared under two names": (SharedUnderTwoNames, (3, 4), {"stem": 8}),
    "shared on two streams": (SharedOnTwoStreams, (3, 4), {"tower.0": 8, "tower.2": 6}),
    "norm used twice": (NormUsedTwice, (3, 4), {"one": 8}),
    "stray parameters": (StrayParameters, (3, 4), {"weight": 8, "uncalled": 6}),
    "edits in place": (Edits, (2, 3, 6, 6), {"stem.0": 8}),
}


@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize("name", HANDLED)
def test_what_is_handled_prunes_exactly(name: str, share: float) -> None:
    make, size, groups = HANDLED[name]
    model, x = randomize(make()).eval(), torch.rand(size)
    graph = inspect_model(model, x)
    assert {group.name: group.n_channels for group in graph.groups} == groups
    removed = some_channels(graph, share)
    expected = masked_copy(model, graph, removed)(x)
    assert not torch.allclose(expected, model(x), atol=1e-3)
    remove_channels_(model, graph, removed)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def test_a_module_at_two_paths_stays_one_module() -> None:
    model, x = randomize(SharedUnderTwoNames()).eval(), torch.rand(3, 4)
    graph = inspect_model(model, x)
    student = compress(model, Candidate({"stem": 0.5}), x, graph=graph)
    assert student.get_submodule("one") is student.get_submodule("two")
    assert {item.name for item in graph.frozen if item.what == "layer"} == {"one", "two"}


@pytest.mark.parametrize("importance", ["l2", "bn_scale", "fpgm", "activation", "entropy"])
def test_channels_of_a_parameter_outside_modules_are_ranked(importance: str) -> None:
    model, x = randomize(StrayParameters()).eval(), torch.rand(3, 4)
    graph = inspect_model(model, x)
    half = Candidate({group.name: 0.5 for group in graph.groups})
    student = compress(model, half, x, graph=graph, calibration=[(x,)], importance=importance)
    assert student.get_parameter("weight").shape == (4, 4)
    assert student(x).shape == (3, 2)


class Unregistered(nn.Module):
    """A tensor that belongs to no module: nobody could cut it."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = [torch.rand(8)]
        self.hidden, self.next, self.head = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.next(self.hidden(x) * self.scales[0])))


def test_a_tensor_outside_modules_freezes_what_meets_it_and_nothing_else() -> None:
    graph = inspect_model(Unregistered(), torch.rand(3, 4))
    assert [group.name for group in graph.groups] == ["next"]
    assert "a constant tensor" in next(item.reason for item in graph.frozen if item.name == "hidden")


class WhileLarge(nn.Module):
    """A loop whose length depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 100:
            x = x / 2
        return self.second(torch.relu(self.first(x)))


class Sized(WhileLarge):
    """A size that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x[: int(x.sum().clamp(1, 1))])))


class ThroughNumpy(WhileLarge):
    """A detour through numpy."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.from_numpy(x.detach().numpy() * 2)
        return self.second(torch.relu(self.first(y)))


UNTRACEABLE = {
    WhileLarge: "while x.abs().max() > 100:",
    Sized: "return self.second(torch.relu(self.first(x[: int(x.sum().clamp(1, 1))])))",
    ThroughNumpy: "y = torch.from_numpy(x.detach().numpy() * 2)",
}


@pytest.mark.parametrize("kind", UNTRACEABLE)
def test_the_line_that_breaks_the_trace_is_named(kind: type[nn.Module]) -> None:
    graph = inspect_model(kind(), torch.rand(2, 16))
    reasons = {item.reason for item in graph.frozen if item.name == "(the whole model)"}
    assert len(reasons) == 1
    reason = reasons.pop()
    assert f'"{UNTRACEABLE[kind]}"' in reason
    assert Path(__file__).name in reason
    assert graph.groups == graph.branches == ()


@pytest.fixture
def untraceable() -> tuple[nn.Module, ModelGraph, Tensor]:
    model, x = randomize(WhileLarge()).eval(), torch.rand(2, 16)
    return model, inspect_model(model, x), x


def test_a_search_of_ranks_and_bits_alone_works(untraceable: tuple[nn.Module, ModelGraph, Tensor]) -> None:
    model, graph, x = untraceable
    space = SearchSpace.load("default", graph)
    assert {knob.name.partition(":")[0] for knob in space.knobs} == {"rank_ratio", "weight_bits"}
    candidate = Candidate(rank_ratio={"first": 0.5}, weight_bits={"second": 8})
    student = compress(model, candidate, x, graph=graph, calibration=[(x,)])
    assert sum(parameter.numel() for parameter in student.parameters()) < graph.n_params
    assert student(x).shape == (2, 16)
    assert not torch.equal(student(x), model(x))
