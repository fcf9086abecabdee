"""Ops without weights that run on integers: what they read, what reads them, where their results can be rounded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.compression.quantize import Surroundings
from autocompress.compression.quantize.integer_ops import active_ops
from autocompress.graph import IntegerOp, ModelGraph, inspect_model
from autocompress.space.candidate import Candidate
from tests.runtimes.integer_nets import SIDE, ResNet8, ShuffleNet, efficient

X = torch.rand(1, 3, SIDE, SIDE)


def ops_of(graph: ModelGraph, kind: str) -> list[IntegerOp]:
    return [op for op in graph.ops if op.kind == kind]


def test_sums_and_the_pool_of_a_residual_net() -> None:
    graph = inspect_model(ResNet8().eval(), X)
    first, second, third = ops_of(graph, "add")
    (pool,) = ops_of(graph, "pool")
    assert first.sources == ("blocks.0.conv2", "conv") and first.relu and first.ceiling is None
    assert set(first.feeds) == {"blocks.1.conv1", "blocks.1.shortcut"} and not first.feeds_others
    assert set(second.sources) == {"blocks.1.conv2", "blocks.1.shortcut"}
    assert (third.site, third.feeds) == ("blocks.2", ()) and pool.sources == (third.name,)
    assert pool.feeds == ("fc",) and not pool.feeds_others


def test_values_are_followed_through_shuffles() -> None:
    graph = inspect_model(ShuffleNet().eval(), X)
    first, second, third = ops_of(graph, "concat")
    assert first.sources == ("blocks.0.left.2", "blocks.0.right.5") and first.site == "blocks.0"
    assert second.sources == (first.name, "blocks.1.right.5"), "the left half is what the block before gave"
    assert second.feeds == ("blocks.2.right.0",) and not second.feeds_others
    assert third.feeds == ("head.0",)


def test_activations_with_a_module_of_their_own() -> None:
    graph = inspect_model(efficient().eval(), X)
    silu, gate, product = (ops_of(graph, kind) for kind in ("silu", "sigmoid", "mul"))
    assert all(op.site for op in (*silu, *gate, *product)) and silu[0].sources == ("0",)
    assert gate[0].sources == ("3.layers.6.fc2",) and gate[0].site == "3.layers.6.gate"
    assert set(product[0].sources) == {silu[2].name, gate[0].name} and product[0].site == "3.layers.6"


def test_an_op_pays_only_between_integers() -> None:
    model = ResNet8().eval()
    graph = inspect_model(model, X)
    around = Surroundings(graph.branches, (), graph.ops)
    paths = {layer.path for layer in graph.layers}
    kinds = [op.kind for op in active_ops(around, paths, (), model)]
    assert kinds == ["add", "add", "add", "pool"]
    assert [op.kind for op in active_ops(around, paths - {"fc"}, (), model)] == ["add", "add"], "nothing reads the pool"
    assert [op.kind for op in active_ops(around, paths - {"blocks.2.conv2"}, (), model)] == ["add", "add"]
    assert [op.kind for op in active_ops(around, paths - {"conv"}, (), model)] == ["add", "add", "pool"]


def test_a_dropped_block_hands_on_what_it_was_given() -> None:
    model = ResNet8().eval()
    graph = inspect_model(model, X)
    dropped = [branch for branch in graph.branches if branch.name == "blocks.2"]
    assert dropped, "the last block can go"
    left = [branch for branch in graph.branches if branch.name != "blocks.2"]
    paths = {layer.path for layer in graph.layers} - set(dropped[0].layers)
    ops = active_ops(Surroundings(left, dropped, graph.ops), paths, (), model)
    (pool,) = (op for op in ops if op.kind == "pool")
    assert pool.sources == ("blocks.2.shortcut",), "the pool reads the shortcut"


class Inline(nn.Module):
    """Joins two values in the middle of a forward, where no module gives the result."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x)], 1)
        return self.c(y[:, :3]) + self.d(y[:, 3:]) + torch.cat([y[:, :1], y[:, 2:4]], 1)


def test_without_a_place_for_its_rounding_an_op_stays_in_float() -> None:
    model = Inline().eval()
    graph = inspect_model(model, X)
    assert next(op.site for op in graph.ops if op.kind == "concat") == ""
    paths = {layer.path for layer in graph.layers}
    assert active_ops(Surroundings(graph.branches, (), graph.ops), paths, (), model) == ()
    candidate = Candidate(weight_bits=dict.fromkeys(paths, 8))
    student = compress(model, candidate, (X,), [(X,)], graph=graph)
    with torch.no_grad():
        assert float((student(X) - model(X)).norm() / model(X).norm()) < 0.1
