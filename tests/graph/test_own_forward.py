"""Layers in disguise are found in the traced graph, cuts at constants are one thing, and what gets no bits is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from autocompress.graph import inspect_model, without_bits
from autocompress.space.search_space import SearchSpace
from tests.runtimes.integer_nets import ConvSame, StandardisedConv

X = torch.rand(1, 3, 8, 8)


class Scaled(nn.Conv2d):
    """Gives something else than its one convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Dynamic(nn.Conv2d):
    """Its weight depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * x.mean(), self.bias)


class Twice(nn.Conv2d):
    """Two convolutions of one weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self._conv_forward(x.flip(2), self.weight, self.bias)


@pytest.mark.parametrize(
    ("layer", "computed"),
    [
        (ConvSame(3, 8, 3, stride=2), False),
        (StandardisedConv(3, 8, 3), True),
        (parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), True),
        (nn.Conv2d(3, 8, 3), False),
    ],
    ids=["same padding", "standardised", "weight norm", "plain"],
)
def test_what_computes_a_layer_is_one(layer: nn.Module, computed: bool) -> None:
    model = nn.Sequential(layer, nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 4, 1)).eval()
    graph = inspect_model(model, X)
    first, last = graph.layers
    assert (first.path, first.kind, first.weight_shape) == ("0", "conv2d", (8, 3, 3, 3))
    assert first.own_forward is (type(layer) is not nn.Conv2d) and first.computed_weight is computed
    assert (first.norm, first.relu, first.ceiling, first.feeds, first.feeds_only_layers) == (
        "1",
        True,
        6.0,
        ("3",),
        True,
    )
    assert not last.own_forward
    assert without_bits(graph) is None
    rule = {"match": "re:.*", "weight_bits": [32, 8], "rank_ratio": [None, 0.5], "sparsity": [0.0, 0.5]}
    knobs = {knob.kind for knob in SearchSpace.from_rules(graph, [rule], rank_grid=1).knobs if knob.target == "0"}
    assert ("weight_bits" in knobs) and ("sparsity" in knobs) is (not first.own_forward)
    assert ("rank_ratio" in knobs) is (not first.own_forward), "neither ranks nor zeros fit a forward of one's own"


@pytest.mark.parametrize(
    ("kind", "reason"), [(Scaled, "something else"), (Dynamic, "depends on the input"), (Twice, "called 2 times")]
)
def test_what_computes_something_else_is_none_and_that_is_said(kind: type[nn.Conv2d], reason: str) -> None:
    graph = inspect_model(nn.Sequential(kind(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval(), X)
    assert [layer.path for layer in graph.layers] == ["2"]
    notice = without_bits(graph)
    assert notice is not None and notice.startswith("1 of 2 layers cannot get 8 bits (1 as 0: ") and reason in notice


def test_the_commonest_reason_comes_first() -> None:
    layers = [Twice(3, 3, 1), Scaled(3, 3, 1), Scaled(3, 3, 1), Dynamic(3, 3, 1), nn.Conv2d(3, 3, 1)]
    notice = without_bits(inspect_model(nn.Sequential(*layers).eval(), X))
    assert notice is not None and notice.startswith("4 of 5 layers cannot get 8 bits (2 as 1: its forward is its own")


CUTS: dict[str, tuple[Callable[[Tensor], Any], float | None]] = {
    "relu": (torch.relu, None),
    "relu6": (F.relu6, 6.0),
    "module": (nn.ReLU6(), 6.0),
    "in place": (nn.ReLU6(inplace=True), 6.0),
    "hardtanh": (lambda x: F.hardtanh(x, 0.0, 6.0), 6.0),
    "clamp": (lambda x: x.clamp(0, 6), 6.0),
    "clamp by name": (lambda x: torch.clamp(x, min=0, max=4), 4.0),
    "clip": (lambda x: torch.clip(x, 0.0, 6.0), 6.0),
    "clamp at zero": (lambda x: x.clamp(min=0), None),
    "clamp_min": (lambda x: torch.clamp_min(x, 0), None),
}


class Cut(nn.Module):
    def __init__(self, act: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.act, self.next = nn.Conv2d(3, 8, 3), act, nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.next(self.act(self.conv(x)))


@pytest.mark.parametrize("name", CUTS)
def test_all_ways_to_cut_off_at_zero_are_one(name: str) -> None:
    act, ceiling = CUTS[name]
    layer = inspect_model(Cut(act).eval(), X).layer("conv")
    assert (layer.relu, layer.ceiling, layer.feeds) == (True, ceiling, ("next",))


@pytest.mark.parametrize(
    "act", [lambda x: x.clamp(-1, 6), lambda x: x.clamp(max=6), lambda x: torch.maximum(x, x * 0.1), F.leaky_relu]
)
def test_other_cuts_are_not_taken_for_relu(act: Callable[[Tensor], Any]) -> None:
    layer = inspect_model(Cut(act).eval(), X).layer("conv")
    assert (layer.relu, layer.ceiling, layer.feeds_only_layers) == (False, None, False)
