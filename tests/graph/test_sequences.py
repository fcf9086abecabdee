"""Attention heads, gated MLPs, embeddings, recurrent units."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.compression.prune import remove_channels_
from autocompress.graph import ModelGraph, inspect_model
from tests.graph.masking import masked_copy, some_channels
from tests.graph.nets import Attention, PreNormBlock, Recurrent, Transformer, randomize

KINDS = ("bert", "gpt", "vit", "llama")
IDS = torch.randint(0, 20, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=KINDS)
def transformer(request: pytest.FixtureRequest) -> tuple[str, nn.Module, ModelGraph]:
    model = randomize(Transformer(request.param)).eval()
    return request.param, model, inspect_model(model, IDS)


def heads_of(graph: ModelGraph, block: int) -> list[str]:
    return [group.name for group in graph.groups if group.name.startswith(f"blocks.{block}.attention")]


def test_stream_heads_and_hidden_units_are_the_groups(transformer: tuple[str, nn.Module, ModelGraph]) -> None:
    kind, _, graph = transformer
    sizes = {group.name: group.n_channels for group in graph.groups}
    assert sizes.pop("tokens") == 16
    n_heads = 2 if kind == "llama" else 4
    attention = [size for name, size in sizes.items() if "attention" in name]
    hidden = [size for name, size in sizes.items() if "attention" not in name]
    assert attention == [n_heads, n_heads]
    assert hidden == [12, 12]
    assert [item.name for item in graph.frozen if item.what != "layer"] == ["head"]


def test_a_query_group_goes_with_its_key_and_value(transformer: tuple[str, nn.Module, ModelGraph]) -> None:
    kind, _, graph = transformer
    if kind != "llama":
        return
    slots = {item.tensor: item.slots[1] for item in graph.group("blocks.0.attention.q_proj").couplings}
    assert slots["blocks.0.attention.q_proj.weight"] == tuple(range(8, 16))
    assert slots["blocks.0.attention.k_proj.weight"] == (4, 5, 6, 7)
    assert slots["blocks.0.attention.o_proj.weight"] == tuple(range(8, 16))


def test_numbers_of_heads_in_the_users_modules_follow(transformer: tuple[str, nn.Module, ModelGraph]) -> None:
    kind, model, graph = transformer
    model = copy.deepcopy(model)
    remove_channels_(model, graph, {heads_of(graph, 0)[0]: [0]})
    attention = model.get_submodule("blocks.0.attention")
    names = {"bert": "heads", "gpt": "split_size", "vit": "num_heads", "llama": "head_dim"}
    expected = {"bert": 3, "gpt": 12, "vit": 3, "llama": 4}
    assert getattr(attention, names[kind]) == expected[kind]
    assert getattr(model.get_submodule("blocks.1.attention"), names[kind]) == getattr(
        Transformer(kind).get_submodule("blocks.1.attention"), names[kind]
    )


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_pruned_transformer_equals_the_masked_original(
    transformer: tuple[str, nn.Module, ModelGraph], share: float
) -> None:
    _, model, graph = transformer
    removed = some_channels(graph, share, seed=3)
    pruned = copy.deepcopy(model)
    remove_channels_(pruned, graph, removed)
    expected = masked_copy(model, graph, removed)(IDS)
    assert not torch.allclose(expected, model(IDS), atol=1e-3)
    torch.testing.assert_close(pruned(IDS), expected, atol=1e-5, rtol=1e-5)


def test_a_pruned_transformer_trains_and_exports(transformer: tuple[str, nn.Module, ModelGraph]) -> None:
    _, model, graph = transformer
    pruned = copy.deepcopy(model).train()
    remove_channels_(pruned, graph, some_channels(graph, 0.5))
    pruned(IDS).square().sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    program = torch.export.export(pruned.eval(), (IDS,), strict=False)
    torch.testing.assert_close(program.module()(IDS), pruned(IDS), atol=1e-5, rtol=1e-5)


class Hidden(nn.Module):
    """The number of heads is known only to the forward, so that no attribute can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 12) for _ in range(3))
        self.out = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(2, 5, 3, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, -1))


def test_heads_that_cannot_go_leave_slots_of_the_values() -> None:
    model, x = randomize(Hidden()).eval(), torch.randn(2, 5, 8)
    graph = inspect_model(model, x)
    assert [(group.name, group.n_channels) for group in graph.groups] == [("v", 4)]
    frozen = {item.name: item.reason for item in graph.frozen}
    assert "scales the scores" in frozen["q"]
    removed = {"v": [1, 2]}
    expected = masked_copy(model, graph, removed)(x)
    remove_channels_(model, graph, removed)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


class WidthAttention(nn.Module):
    """As in Swin: the size of a head is the width of the stream divided by the number of heads.

    In its second version keys have no bias: that third of the bias is set to zero in place.
    """

    def __init__(self, width: int, heads: int, no_key_bias: bool = False) -> None:
        super().__init__()
        self.num_heads, self.no_key_bias = heads, no_key_bias
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.rand(heads, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        bias = self.qkv.bias
        if self.no_key_bias:
            bias = bias.clone()
            bias[len(bias) // 3 : 2 * len(bias) // 3].zero_()
        qkv = (
            F.linear(x, self.qkv.weight, bias)
            .reshape(n, length, 3, self.num_heads, width // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        q, k, v = qkv[0] * (width // self.num_heads) ** -0.5, qkv[1], qkv[2]
        y = torch.softmax(q @ k.mT + self.bias, -1) @ v
        return self.proj(y.transpose(1, 2).reshape(n, length, width))


class TorchAttention(nn.Module):
    """Multi-head attention of torch, of a stream with itself."""

    def __init__(self, *sizes: int, **options: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(*sizes, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Encoder(nn.Module):
    """A stream into and out of two equal blocks."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.inward, self.blocks, self.head = nn.Linear(7, 16), nn.Sequential(*blocks), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.inward(x)).mean(1))


ENCODERS = {
    "swin": lambda: PreNormBlock(16, WidthAttention(16, 4)),
    "swin_v2": lambda: PreNormBlock(16, WidthAttention(16, 4, no_key_bias=True)),
    "multihead": lambda: PreNormBlock(16, TorchAttention(16, 4, batch_first=True)),
    "multihead_time_first": lambda: PreNormBlock(16, TorchAttention(16, 4)),
    "torch_layer": lambda: nn.TransformerEncoderLayer(16, 4, 12, dropout=0.0, batch_first=True),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_heads_whose_size_follows_the_width_go_with_blocks_of_the_stream(name: str) -> None:
    model, x = randomize(Encoder([ENCODERS[name]() for _ in range(2)])).eval(), torch.randn(2, 5, 7)
    graph = inspect_model(model, x)
    stream = graph.group("inward")
    assert stream.n_channels == 4
    assert stream.couplings[0].slots == tuple(tuple(range(4 * head, 4 * head + 4)) for head in range(4))
    removed = {"inward": [1, 2]} | {group.name: [0] for group in graph.groups if group.name != "inward"}
    expected = masked_copy(model, graph, removed)(x)
    remove_channels_(model, graph, removed)
    assert model.inward.out_features == 8
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():  # torch's own encoder layer takes a fast path then
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    again = inspect_model(model, x)
    assert again.group("inward").n_channels == 2


def test_multi_head_attention_is_frozen_where_its_stream_is_an_output_and_other_layers_are_not() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    graph = inspect_model(model, torch.randn(2, 5, 8))
    assert [group.name for group in graph.groups] == ["linear1"]
    assert graph.group("linear1").n_channels == 16
    assert {item.name for item in graph.frozen if item.what == "channels"} >= {"self_attn"}


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_pruned_recurrent_net_equals_the_masked_original(share: float) -> None:
    model = randomize(Recurrent()).eval()
    inputs = torch.randn(3, 4, 5), torch.tensor([1, 3, 0])
    graph = inspect_model(model, inputs)
    assert {group.name: group.n_channels for group in graph.groups} == {"inward": 6, "lstm": 8, "gru": 10}
    removed = some_channels(graph, share)
    expected = masked_copy(model, graph, removed)(*inputs)
    remove_channels_(model, graph, removed)
    torch.testing.assert_close(model(*inputs), expected, atol=1e-5, rtol=1e-5)
    assert model.lstm.hidden_size == 8 - len(removed["lstm"])
    assert model.gru.input_size == 2 * model.lstm.hidden_size
    model.train()(*inputs).sum().backward()
    assert model.gru.weight_hh_l0.grad is not None
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(*inputs), model(*inputs))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_time_first_recurrent_nets_prune(kind: type[nn.RNNBase]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = kind(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0][-1])

    model, x = randomize(Net()).eval(), torch.randn(5, 2, 4)
    graph = inspect_model(model, x)
    expected = masked_copy(model, graph, {"cell": [0, 5]})(x)
    remove_channels_(model, graph, {"cell": [0, 5]})
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


class Projected(nn.Module):
    """An LSTM whose hidden units are projected to fewer, and which hands on its last output and its last cell state."""

    def __init__(self, n_units: int = 9, n_projected: int = 4, **options: Any) -> None:
        super().__init__()
        self.inward = nn.Linear(3, 6)
        self.lstm = nn.LSTM(6, n_units, batch_first=True, proj_size=n_projected, **options)
        directions = 2 if self.lstm.bidirectional else 1
        self.head, self.cell_head = nn.Linear(directions * n_projected, 3), nn.Linear(n_units, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, (_, cell) = self.lstm(torch.tanh(self.inward(x)))
        return self.head(y[:, -1]), self.cell_head(cell[-1])


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm._flat_weights", "ignore:LSTM with projections")
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_an_lstm_with_projections_keeps_more_units_than_projected_ones(options: dict[str, Any]) -> None:
    model, x = randomize(Projected(**options)).eval(), torch.randn(3, 4, 3)
    graph = inspect_model(model, x)
    assert {group.name: group.n_channels for group in graph.groups} == {"inward": 6, "lstm": 4, "lstm#2": 5}
    # 9 - 1 - 4 units: as many as there are projected, were it not that unit j goes with projected unit j
    for removed in ({"lstm": [2], "lstm#2": [0, 1, 3, 4]}, {"lstm": [0, 1, 3]}, some_channels(graph, 0.5, seed=2)):
        pruned = copy.deepcopy(model)
        remove_channels_(pruned, graph, removed)
        for found, expected in zip(pruned(x), masked_copy(model, graph, removed)(x), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert pruned.lstm.proj_size == 4 - len(removed["lstm"]) == pruned.lstm.weight_hr_l0.shape[0]
        assert pruned.lstm.hidden_size == pruned.lstm.weight_hr_l0.shape[1] > pruned.lstm.proj_size
    torch.export.export(pruned, (x,), strict=False)


def test_the_only_unit_above_the_projected_ones_stays() -> None:
    graph = inspect_model(randomize(Projected(5, 4)).eval(), torch.randn(3, 4, 3))
    assert {group.name: group.n_channels for group in graph.groups} == {"inward": 6, "lstm": 4}
    assert "no channel would be left" in next(item.reason for item in graph.frozen if item.name == "lstm")


def test_a_recurrent_net_with_a_given_state_is_frozen() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return self.head(self.cell(x, state)[0])

    graph = inspect_model(Net(), (torch.randn(2, 5, 4), torch.randn(1, 2, 6)))
    assert graph.groups == ()
    assert "input 'state'" in next(item.reason for item in graph.frozen if item.name == "cell")


def test_attention_counts_its_products() -> None:
    graph = inspect_model(Attention(8, 2), torch.randn(3, 5, 8))
    assert graph.n_macs == 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8
