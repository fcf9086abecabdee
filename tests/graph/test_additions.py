"""Attention and feed-forward parts of transformer blocks that are dropped each by itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.compression.prune import drop_branches_
from autocompress.graph import inspect_model
from autocompress.space.candidate import Candidate
from tests.graph.nets import GatedMlp, Transformer, randomize

IDS = torch.randint(0, 20, (2, 7), generator=torch.Generator().manual_seed(1))


class Zero(nn.Module):
    """The reference for a part that is gone."""

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize("kind", ["gpt", "vit", "llama"])
def test_attention_and_mlp_of_pre_norm_blocks_go_each_by_itself(kind: str) -> None:
    model = randomize(Transformer(kind)).eval()
    graph = inspect_model(model, IDS)
    names = [branch.name for branch in graph.branches]
    assert sorted(names) == sorted(f"blocks.{block}.{part}" for block in range(2) for part in ("attention", "mlp"))
    expected = copy.deepcopy(model)
    expected.blocks[0].attention = Zero()  # type: ignore[index,union-attr]
    expected.blocks[1].mlp = Zero()  # type: ignore[index,union-attr]
    drop_branches_(model, graph, ["blocks.0.attention", "blocks.1.mlp"])
    torch.testing.assert_close(model(IDS), expected(IDS), atol=1e-6, rtol=1e-5)
    left = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert not [path for path in left if path.startswith(("blocks.0.attention", "blocks.0.norm1", "blocks.1.mlp"))]
    torch.export.export(model, (IDS,), strict=False)


def test_a_part_is_dropped_and_what_is_left_is_pruned() -> None:
    model = randomize(Transformer("llama")).eval()
    graph = inspect_model(model, IDS)
    ratios = {group.name: 0.5 for group in graph.groups}
    dropped = frozenset({"blocks.0.attention"})
    student = compress(model, Candidate(ratios, drop=dropped), (IDS,), graph=graph)
    expected = compress(model, Candidate(ratios), (IDS,), graph=graph)
    expected.blocks[0].attention = Zero()  # type: ignore[index,union-attr]
    torch.testing.assert_close(student(IDS), expected(IDS), atol=1e-6, rtol=1e-5)


class TupleBlock(nn.Module):
    """As in T5: an attention that returns a tuple; its bias is computed in the first block and handed on."""

    def __init__(self, width: int, makes_bias: bool) -> None:
        super().__init__()
        self.mix, self.norm, self.mlp = TupleMix(width, makes_bias), nn.LayerNorm(width), GatedMlp(width, 12)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mixed, bias = self.mix(x, bias=bias)
        x = x + mixed
        return x + self.mlp(self.norm(x)), bias


class TupleMix(nn.Module):
    """A product over positions, with a bias that is made or given."""

    def __init__(self, width: int, makes_bias: bool) -> None:
        super().__init__()
        self.inner, self.table = nn.Linear(width, width), nn.Parameter(torch.rand(5, 5)) if makes_bias else None

    def forward(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        bias = self.table * 2 if self.table is not None else bias
        assert bias is not None
        return bias @ self.inner(x), bias


class TupleNet(nn.Module):
    """Two such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.first, self.second = TupleBlock(8, True), TupleBlock(8, False)

    def forward(self, x: Tensor) -> Tensor:
        x, bias = self.first(self.inward(x))
        x, _ = self.second(x, bias)
        return self.head(x)


def test_a_part_that_returns_a_tuple_hands_its_arguments_on_and_one_that_others_need_is_kept() -> None:
    model, x = randomize(TupleNet()).eval(), torch.randn(2, 5, 3)
    graph = inspect_model(model, x)
    names = [branch.name for branch in graph.branches]
    assert {"second.mix", "first.mlp", "second.mlp"} <= set(names)
    assert "first.mix" not in names, "the second block reads the bias that it makes"
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected.second.mix.inner.weight.zero_()
        expected.second.mix.inner.bias.zero_()
    drop_branches_(model, graph, ["second.mix"])
    torch.testing.assert_close(model(x), expected(x), atol=1e-6, rtol=1e-5)


class FirstAttention(nn.Module):
    """As in T5's first block: the position bias is made here and read by the second block too."""

    def __init__(self, width: int, makes_bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.table = nn.Parameter(torch.rand(5, 5)) if makes_bias else None

    def forward(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        bias = self.table * 2 if self.table is not None else bias
        assert bias is not None
        return self.o(torch.softmax(self.q(x) @ self.k(x).mT + bias, -1) @ self.v(x)), bias


def test_a_branch_of_single_layers_is_named_after_the_module_around_them() -> None:
    net = TupleNet()
    net.first.mix, net.second.mix = FirstAttention(8, True), FirstAttention(8, False)  # type: ignore[assignment]
    model, x = randomize(net).eval(), torch.randn(2, 5, 3)
    graph = inspect_model(model, x)
    assert {branch.name for branch in graph.branches} == {"first.mix", "second.mix", "first.mlp", "second.mlp"}
    first = next(branch for branch in graph.branches if branch.name == "first.mix")
    assert first.gone == tuple(f"first.mix.{name}" for name in "qkvo")
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected.first.mix.o.weight.zero_()  # type: ignore[union-attr]
        expected.first.mix.o.bias.zero_()  # type: ignore[union-attr]
    drop_branches_(model, graph, ["first.mix"])
    torch.testing.assert_close(model(x), expected(x), atol=1e-6, rtol=1e-5)


class KeywordBlock(nn.Module):
    """Called by keyword, with a flag, and returns its scale together with the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, 6), nn.Linear(6, width)

    def forward(self, *, stream: Tensor, scale: Tensor, flag: bool = False) -> tuple[Tensor, Tensor]:
        return stream + self.outer(torch.relu(self.inner(stream))) * scale, scale


class KeywordNet(nn.Module):
    """Two such blocks; the second gets what the first returned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = KeywordBlock(4), KeywordBlock(4)
        self.inward, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, scale = self.first(stream=self.inward(x), scale=x.mean(), flag=True)
        return self.head(self.second(stream=x, scale=scale)[0] * scale)


def test_a_block_called_by_keyword_that_returns_a_tuple_becomes_its_shortcut() -> None:
    model, x = randomize(KeywordNet()).eval(), torch.randn(2, 3)
    graph = inspect_model(model, x)
    assert [branch.name for branch in graph.branches] == ["first", "second"]
    scale = x.mean()
    expected = model.head(model.second(stream=model.inward(x), scale=scale)[0] * scale)
    drop_branches_(model, graph, ["first"])
    torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-5)
    torch.export.export(copy.deepcopy(model), (x,), strict=False)


HEADS, HEAD_SIZE = 2, 8


class FixedBlock(nn.Module):
    """Its forward splits queries, keys and values by sizes that are written in the code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * HEADS * HEAD_SIZE), nn.Linear(HEADS * HEAD_SIZE, width)
        self.up, self.down = nn.Linear(width, 24), nn.Linear(24, width)

    def attended(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, HEAD_SIZE).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, HEADS * HEAD_SIZE))
        return result

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attended(x)
        result: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return result


class FixedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 16)
        self.blocks = nn.Sequential(FixedBlock(16), FixedBlock(16))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.blocks(self.stem(x)))
        return result


def test_attention_whose_sizes_are_written_in_the_code_can_go_while_its_stream_is_pruned() -> None:
    model, x = randomize(FixedNet()).eval(), torch.randn(2, 7, 5)
    graph = inspect_model(model, (x,))
    assert [branch.name for branch in graph.branches] == [
        f"blocks.{block}.{name}" for block in range(2) for name in ("qkv", "up")
    ]
    ratios = {group.name: 0.5 for group in graph.groups}
    assert "stem" in ratios
    student = compress(model, Candidate(ratios, drop=frozenset({"blocks.0.qkv"})), (x,), graph=graph)
    expected = compress(model, Candidate(ratios), (x,), graph=graph)
    expected.blocks[0].attended = torch.zeros_like  # type: ignore[index,union-attr]
    torch.testing.assert_close(student(x), expected(x), atol=1e-6, rtol=1e-5)
    assert not [name for name, _ in student.named_parameters() if name.startswith(("blocks.0.qkv", "blocks.0.out"))]
    ops = {str(node.target) for node in torch.export.export(student, (x,), strict=False).graph.nodes}
    assert len([op for op in ops if "attention" in op]) == 1
