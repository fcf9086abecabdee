"""One small model for each further op or habit: which groups it has, or the reason why it has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.compression.prune import remove_channels_
from autocompress.graph import inspect_model
from tests.graph.masking import masked_copy, some_channels
from tests.graph.nets import randomize

IMAGE, ROW, SERIES = (2, 3, 8, 8), (2, 4), (2, 5, 8)
Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Layers by name and a forward over them."""

    def __init__(self, forward: Forward, **layers: nn.Module) -> None:
        super().__init__()
        self.call = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def convnext(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    y = m.project(F.gelu(m.expand(m.norm(m.depthwise(x).permute(0, 2, 3, 1)))))
    return m.head((x + y.permute(0, 3, 1, 2)).mean((-2, -1)))


def mixer(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    return m.head((x + m.back(F.gelu(m.across(m.norm(x).transpose(1, 2)))).transpose(1, 2)).mean(1))


def gated_by_chunk(m: Any, x: Tensor) -> Tensor:
    a, b = m.both(x).chunk(2, -1)
    return m.head(torch.relu(m.down(F.silu(a) * b)))


def halves(m: Any, x: Tensor) -> Tensor:
    x = m.conv(x).mean((2, 3))
    half = x.shape[1] // 2
    return m.head(m.gate(x[:, :half]) * x[:, half:])


def selective(m: Any, x: Tensor) -> Tensor:
    y = torch.stack([m.wide(x), m.narrow(x)], 1)
    weight = m.choose(y.sum(1).mean((2, 3))).view(x.shape[0], 2, -1).softmax(1)
    return m.head((y * weight[..., None, None]).sum(1).mean((2, 3)))


def grouped_query(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v))
    y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return m.head(y.transpose(1, 2).flatten(2))


def gated_unit(m: Any, x: Tensor) -> Tensor:
    return m.head(F.glu(m.conv(x), 1).mean(-1))


def unit_length(m: Any, x: Tensor) -> Tensor:
    return m.head(F.normalize(m.hidden(x), dim=-1))


class Projection(nn.Module):
    """A linear layer of the user's own kind: the weight lies the other way, and the sizes are kept as integers."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.n_in, self.n_out = n_in, n_out
        self.weight, self.bias = nn.Parameter(torch.rand(n_in, n_out)), nn.Parameter(torch.rand(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.n_out)


def without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = torch.relu(m.backbone(x))
    return m.head(x)


def projected(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.relu(m.square(torch.relu(m.first(x)))))


class CrossStage(nn.Module):
    """Splits by integers that it keeps itself: the width of the whole, and then of three parts."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.part, self.other = 8, 4, 8
        self.spread, self.inner, self.thirds = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.spread(x).split(self.width // 2, dim=1)
        x = torch.cat([first, torch.relu(self.inner(second))], 1)
        one, two, three = torch.split(self.thirds(x), self.part, 1)
        return one * two + three


class Scale(nn.Module):
    """A factor by channel, brought into the shape of an image by a tuple that holds the size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shape = nn.Parameter(torch.rand(width)), (width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(self.shape)


class Reduction(nn.Module):
    """Shapes what its layer makes by what it reads, as the sequence reduction of SegFormer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(width, width, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(x).reshape(x.shape[0], x.shape[1], -1).mean(-1)


class SubclassedNorm(nn.GroupNorm):
    """One group; a number of torch's own layer is not counted down twice."""

    def __init__(self, width: int) -> None:
        super().__init__(1, width)


def within_contexts(m: Any, x: Tensor) -> Tensor:
    x = m.inward(x)
    with torch.autocast("cpu", enabled=False):
        y = torch.relu(m.hidden(x.float()))
        with torch.enable_grad():
            z = y * x
        y = y + 1
    return m.head(y + z)


class Experts(nn.Module):
    """Weights of three experts, stacked in one parameter, all of them used."""

    def __init__(self, spelled: bool) -> None:
        super().__init__()
        self.spelled = spelled
        self.up, self.down = nn.Parameter(torch.rand(3, 8, 12)), nn.Parameter(torch.rand(3, 8, 12))

    def forward(self, x: Tensor) -> Tensor:
        if self.spelled:
            inner = torch.relu(torch.einsum("nd,edh->neh", x, self.up))
            return torch.einsum("neh,edh->nd", inner, self.down)
        inner = torch.relu(torch.bmm(x.expand(3, -1, -1), self.up))
        return torch.bmm(inner, self.down.transpose(1, 2)).sum(0)


def with_experts(m: Any, x: Tensor) -> Tensor:
    return m.head(m.experts(m.inward(x)))


def filtered(m: Any, x: Tensor) -> Tensor:
    """A depthwise convolution whose weight is squeezed and unsqueezed on the way, as in state space models."""
    x = m.inward(x)
    return m.head(F.conv1d(x, m.conv.weight.squeeze(1)[:, None], m.conv.bias, groups=x.shape[1]).mean(-1))


def in_windows(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    y = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))
    z = F.fold(m.mix(F.unfold(x, 2, stride=2)), (8, 8), 2, stride=2)
    return m.head(torch.cat([y.mean((2, 3)), z.mean((2, 3))], 1))


GROUPS: dict[str, tuple[Net, tuple[int, ...], dict[str, int]]] = {
    "convnext": (
        Net(
            convnext,
            stem=nn.Conv2d(3, 16, 2, 2),
            depthwise=nn.Conv2d(16, 16, 3, padding=1, groups=16),
            norm=nn.LayerNorm(16),
            expand=nn.Linear(16, 24),
            project=nn.Linear(24, 16),
            head=nn.Linear(16, 3),
        ),
        IMAGE,
        {"stem": 16, "expand": 24},
    ),
    "mixer": (
        Net(
            mixer,
            stem=nn.Linear(8, 10),
            norm=nn.LayerNorm(10),
            across=nn.Linear(5, 6),
            back=nn.Linear(6, 5),
            head=nn.Linear(10, 2),
        ),
        SERIES,
        {"stem": 10, "across": 6},
    ),
    "gated by chunk": (
        Net(gated_by_chunk, both=nn.Linear(8, 24), down=nn.Linear(12, 8), head=nn.Linear(8, 2)),
        SERIES,
        {"both": 12, "down": 8},
    ),
    "gated linear unit": (
        Net(gated_unit, conv=nn.Conv1d(5, 24, 3), head=nn.Linear(12, 2)),
        SERIES,
        {"conv": 12},
    ),
    "halves": (
        Net(halves, conv=nn.Conv2d(3, 8, 3), gate=nn.Linear(4, 4), head=nn.Linear(4, 2)),
        IMAGE,
        {"conv": 4},
    ),
    "selective kernels": (
        Net(
            selective,
            wide=nn.Conv2d(3, 8, 3, padding=1),
            narrow=nn.Conv2d(3, 8, 1),
            choose=nn.Linear(8, 16),
            head=nn.Linear(8, 2),
        ),
        IMAGE,
        {"wide": 8},
    ),
    "grouped query": (
        Net(grouped_query, q=nn.Linear(8, 16), k=nn.Linear(8, 8), v=nn.Linear(8, 8), head=nn.Linear(16, 2)),
        SERIES,
        {"q": 2},
    ),
    "transposed in groups": (
        Net(
            lambda m, x: m.head(m.lone(m.up(F.relu(m.conv(x)))).mean((2, 3))),
            conv=nn.Conv2d(3, 8, 3),
            up=nn.ConvTranspose2d(8, 12, 2, 2, groups=4),
            lone=nn.ConvTranspose2d(12, 12, 2, groups=12),
            head=nn.Linear(12, 2),
        ),
        IMAGE,
        {"conv": 2, "up": 3},
    ),
    "three dimensions": (
        Net(
            lambda m, x: m.head(F.adaptive_avg_pool3d(F.elu(m.norm(m.conv(x))), 1).flatten(1)),
            conv=nn.Conv3d(1, 6, 3),
            norm=nn.BatchNorm3d(6),
            head=nn.Linear(6, 2),
        ),
        (2, 1, 5, 5, 5),
        {"conv": 6},
    ),
    "norm without weights": (
        Net(
            lambda m, x: m.head(torch.flatten(m.norm(m.conv(x)), 1)),
            conv=nn.Conv2d(3, 8, 3),
            norm=nn.BatchNorm2d(8, affine=False),
            head=nn.Linear(8 * 36, 2),
        ),
        IMAGE,
        {"conv": 8},
    ),
    "without gradients": (Net(without_gradients, backbone=nn.Linear(4, 8), head=nn.Linear(8, 2)), ROW, {"backbone": 8}),
    "contexts": (
        Net(within_contexts, inward=nn.Linear(4, 8), hidden=nn.Linear(8, 8), head=nn.Linear(8, 2)),
        ROW,
        {"inward": 8},
    ),
    "sizes of parts kept by the block": (
        Net(lambda m, x: m.head(m.block(x).mean((2, 3))), block=CrossStage(), head=nn.Linear(4, 2)),
        IMAGE,
        {"block.spread": 4, "block.inner": 4, "block.thirds": 4},
    ),
    "size in a tuple": (
        Net(
            lambda m, x: m.head(m.scale(torch.relu(m.conv(x))).mean((2, 3))),
            conv=nn.Conv2d(3, 8, 1),
            scale=Scale(8),
            head=nn.Linear(8, 2),
        ),
        IMAGE,
        {"conv": 8},
    ),
    "stacked experts": (
        Net(with_experts, inward=nn.Linear(4, 8), experts=Experts(False), head=nn.Linear(8, 2)),
        ROW,
        {"inward": 8, "experts": 12, "experts#2": 8},
    ),
    "stacked experts, spelled out": (
        Net(with_experts, inward=nn.Linear(4, 8), experts=Experts(True), head=nn.Linear(8, 2)),
        ROW,
        {"inward": 8, "experts": 3, "experts#2": 12, "experts#3": 8},
    ),
    "filtered": (
        Net(filtered, inward=nn.Conv1d(5, 6, 1), conv=nn.Conv1d(6, 6, 3, groups=6), head=nn.Linear(6, 2)),
        SERIES,
        {"inward": 6},
    ),
    "windows": (
        Net(in_windows, stem=nn.Conv2d(3, 6, 1), mix=nn.Conv1d(24, 20, 1), head=nn.Linear(6 + 5, 2)),
        IMAGE,
        {"stem": 6, "mix": 5},
    ),
    "unit length": (Net(unit_length, hidden=nn.Linear(4, 8), head=nn.Linear(8, 2)), ROW, {"hidden": 8}),
    "sizes kept by own layers": (
        Net(projected, first=Projection(8, 6), square=Projection(6, 6), head=nn.Linear(6, 2)),
        SERIES,
        {"first": 6, "square": 6},
    ),
    "extremes of two tensors": (
        Net(
            lambda m, x: m.head(torch.max(m.one(x), m.two(x)).swapaxes(0, 1).swapaxes(0, 1)),
            one=nn.Linear(4, 8),
            two=nn.Linear(4, 8),
            head=nn.Linear(8, 2),
        ),
        ROW,
        {"one": 8},
    ),
    "weight norm": (
        Net(
            lambda m, x: m.head(m.next(F.relu(m.conv(x))).mean((2, 3))),
            conv=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
            next=nn.Conv2d(8, 8, 3),
            head=nn.Linear(8, 2),
        ),
        IMAGE,
        {"conv": 8, "next": 8},
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_and_exactness(name: str) -> None:
    net, size, expected_groups = GROUPS[name]
    model, x = randomize(net).eval(), torch.rand(size)
    graph = inspect_model(model, x)
    assert {group.name: group.n_channels for group in graph.groups} == expected_groups
    removed = some_channels(graph, 0.5)
    expected = masked_copy(model, graph, removed)(x)
    remove_channels_(model, graph, removed)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def linear(forward: Forward) -> Net:
    return Net(forward, hidden=nn.Linear(4, 8), head=nn.Linear(8, 2))


def in_half_precision(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = m.hidden(x)
    return m.head(y.float())


FROZEN: dict[str, tuple[Net, str]] = {
    "order": (linear(lambda m, x: m.head(m.hidden(x).cumsum(1))), "order of its slots"),
    "no rule": (linear(lambda m, x: m.head(torch.cummax(m.hidden(x), 1)[0])), "aten.cummax.default, which has no rule"),
    "largest": (linear(lambda m, x: m.head(m.hidden(x).topk(8, dim=1)[0])), "aten.topk.default"),
    "constant": (
        linear(lambda m, x: m.head(m.hidden(x) * torch.arange(8.0))),
        "tensor of fixed size made by aten.arange",
    ),
    "lifted": (linear(lambda m, x: m.head(m.hidden(x) * torch.tensor([1.0] * 7 + [2.0]))), "a constant tensor"),
    "noise": (linear(lambda m, x: m.head(m.hidden(x) + torch.randn(8))), "aten.randn.default"),
    "cut": (linear(lambda m, x: m.head(F.pad(m.hidden(x)[:, 1:], (0, 1)))), "cut at fixed positions [1:8:1]"),
    "unequal": (linear(lambda m, x: m.head(torch.cat(m.hidden(x).split([3, 5], 1)[::-1], 1))), "unequal parts [3, 5]"),
    "picked": (
        linear(lambda m, x: m.head(m.hidden(x) + m.hidden(x)[:, 0:1] * m.hidden(x)[:, 3, None])),
        "picked by number",
    ),
    "inner graph": (linear(in_half_precision), "wrap_with_autocast, which has no rule"),
    "input": (Net(lambda m, x: m.head(m.hidden(x) + x), hidden=nn.Linear(4, 4), head=nn.Linear(4, 2)), "the input 'x'"),
    "literal": (linear(lambda m, x: m.head(m.hidden(x).reshape(-1, 8))), "a pruned copy"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_what_cannot_go_is_frozen_with_its_reason(name: str) -> None:
    net, reason = FROZEN[name]
    x = torch.rand(8, 4)
    graph = inspect_model(randomize(net), x)
    assert graph.groups == ()
    assert reason in next(item.reason for item in graph.frozen if item.name == "hidden")
    assert "is an output of the model" in [item.reason for item in graph.frozen if item.name == "head"]


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1
        y = torch.relu(self.hidden(x))
        return self.head(y), {"size": y.square().sum()}


def test_a_counter_buffer_and_nested_outputs_do_not_disturb_and_are_not_counted() -> None:
    model = Counter()
    graph = inspect_model(model, torch.rand(2, 4))
    assert [group.name for group in graph.groups] == ["hidden"]
    assert model.calls.item() == 0


def test_a_model_that_returns_an_inner_value_keeps_it() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = torch.relu(self.first(x))
            return {"features": y, "logits": self.head(torch.relu(self.second(y)))}

    graph = inspect_model(Features(), torch.rand(2, 4))
    assert [group.name for group in graph.groups] == ["second"]


def test_integers_of_the_users_layers_follow_the_group_that_they_count() -> None:
    model, x = randomize(Net(projected, first=Projection(8, 6), square=Projection(6, 6), head=nn.Linear(6, 2))), SERIES
    graph = inspect_model(model, torch.rand(x))
    remove_channels_(model, graph, {"first": [0], "square": [1, 2]})
    assert model.get_submodule("first").n_out == 5
    assert model.get_submodule("square").n_out == 4


def test_integers_of_a_block_that_splits_follow_and_equal_ones_do_not() -> None:
    model, x = randomize(CrossStage()).eval(), torch.rand(IMAGE)
    model = Net(lambda m, x: m.head(m.block(x).mean((2, 3))), block=model, head=nn.Linear(4, 2))
    graph = inspect_model(model, x)
    remove_channels_(model, graph, {"block.spread": [0], "block.thirds": [1, 2]})
    block = model.get_submodule("block")
    assert (block.width, block.part, block.other) == (6, 2, 8)


def test_a_size_in_a_tuple_follows_and_that_of_a_torch_layer_follows_once() -> None:
    model = Net(
        lambda m, x: m.scale(m.norm(m.conv(x))).mean((2, 3)) @ m.head.weight.mT,
        conv=nn.Conv2d(3, 8, 1),
        norm=SubclassedNorm(8),
        scale=Scale(8),
        head=nn.Linear(8, 2, bias=False),
    )
    graph = inspect_model(randomize(model), torch.rand(IMAGE))
    remove_channels_(model, graph, {"conv": [1, 5, 7]})
    assert model.get_submodule("scale").shape == (5, 1, 1)
    assert model.get_submodule("norm").num_channels == 5


def test_what_is_shaped_by_the_size_of_another_goes_with_it_and_never_alone() -> None:
    model = Net(
        lambda m, x: m.head(torch.relu(m.one(m.conv(x)) + m.two(m.conv(x)))),
        conv=nn.Conv2d(3, 12, 1),
        one=Reduction(12),
        two=Reduction(12),
        head=nn.Linear(12, 2),
    )
    model, x = randomize(model).eval(), torch.rand(IMAGE)
    graph = inspect_model(model, x)
    assert {group.name: group.n_channels for group in graph.groups} == {"conv": 12}
    assert set(graph.group("conv").producers) == {"conv", "one.reduction", "two.reduction"}
    removed = {"conv": [0, 3, 4, 9, 11]}
    expected = masked_copy(model, graph, removed)(x)
    remove_channels_(model, graph, removed)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def test_an_output_and_an_edit_in_place_within_a_context_are_found() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                y = torch.relu(self.first(x))
                y.mul_(2.0)
                return self.head(torch.relu(self.second(y)))

    model, x = randomize(Inner()).eval(), torch.rand(2, 4)
    graph = inspect_model(model, x)
    assert {group.name: group.n_channels for group in graph.groups} == {"first": 8, "second": 6}
    assert [(item.name, item.reason) for item in graph.frozen] == [("head", "is an output of the model")]


def test_a_rule_that_does_not_fit_freezes_instead_of_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    from autocompress.graph.rules import RULES

    for broken in (lambda node, flow: (), lambda node, flow: node.args[7]):
        monkeypatch.setitem(RULES, "aten.relu", broken)
        graph = inspect_model(linear(lambda m, x: m.head(torch.relu(m.hidden(x)))), torch.rand(2, 4))
        assert graph.groups == ()
        assert "aten.relu.default" in next(item.reason for item in graph.frozen if item.name == "hidden")
