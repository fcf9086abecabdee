from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from autocompress.compression.prune import drop_branches_, remove_channels_
from autocompress.errors import CompressionError
from autocompress.graph import ModelGraph, inspect_model
from tests.graph.masking import some_channels
from tests.graph.nets import (
    Attention,
    Block,
    ResNet,
    Transformer,
    conv_resnet,
    pad_resnet,
    randomize,
    unit,
)


def silence(model: nn.Module, blocks: Iterable[str]) -> nn.Module:
    """The independent reference: branches whose last layers give zeros."""
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        for name in blocks:
            block = silenced.get_submodule(name)
            for last in ("bn2", "attention.out", "outer", "attention.proj", "attention.o_proj", "mlp.down"):
                module = _find(block, last)
                if module is not None:
                    for parameter in module.parameters():
                        parameter.zero_()
    return silenced


def _find(block: nn.Module, path: str) -> nn.Module | None:
    try:
        return block.get_submodule(path)
    except AttributeError:
        return None


def n_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module", params=[pad_resnet, conv_resnet])
def resnet(request: pytest.FixtureRequest) -> tuple[ResNet, ModelGraph, Tensor]:
    model, x = randomize(request.param()).eval(), torch.rand(2, 3, 8, 8)
    return model, inspect_model(model, x), x


def test_every_block_is_a_branch_with_its_layers(resnet: tuple[ResNet, ModelGraph, Tensor]) -> None:
    _, graph, _ = resnet
    assert [branch.name for branch in graph.branches] == ["blocks.0", "blocks.1", "blocks.2"]
    assert graph.branches[1].layers == ("blocks.1.conv1", "blocks.1.conv2")


@pytest.mark.parametrize(
    "names", [["blocks.0"], ["blocks.1"], ["blocks.0", "blocks.2"], ["blocks.0", "blocks.1", "blocks.2"]]
)
def test_a_cut_net_equals_one_with_silent_branches(resnet: tuple[ResNet, ModelGraph, Tensor], names: list[str]) -> None:
    model, graph, x = resnet
    cut = copy.deepcopy(model)
    drop_branches_(cut, graph, names)
    torch.testing.assert_close(cut(x), silence(model, names)(x), atol=1e-5, rtol=1e-5)
    gone = sum(
        parameter.numel()
        for name in names
        for part in ("conv1", "bn1", "conv2", "bn2")
        for parameter in model.get_submodule(f"{name}.{part}").parameters()
    )
    assert n_params(cut) == n_params(model) - gone


def test_the_branchs_ops_are_gone_from_the_trace_and_the_rest_trains(resnet: tuple[ResNet, ModelGraph, Tensor]) -> None:
    model, graph, x = resnet
    cut = copy.deepcopy(model)
    drop_branches_(cut, graph, ["blocks.0", "blocks.2"])
    nodes = torch.export.export(cut, (x,), strict=False).graph.nodes
    convolutions = [node for node in nodes if "conv2d" in str(node.target)]
    sums = [node for node in nodes if "add" in str(node.target)]
    n_shortcut = sum(isinstance(module, nn.Conv2d) for module in model.blocks[1].shortcut.modules())
    assert len(convolutions) == 3 + n_shortcut
    assert len(sums) == 1
    cut.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in cut.parameters())
    twin = copy.deepcopy(cut)
    twin.load_state_dict(cut.state_dict())


def test_survivors_keep_their_paths_and_modes(resnet: tuple[ResNet, ModelGraph, Tensor]) -> None:
    model, graph, _ = resnet
    cut = copy.deepcopy(model).train()
    drop_branches_(cut, graph, ["blocks.1"])
    left = [name for name in model.state_dict() if not name.startswith(("blocks.1.conv", "blocks.1.bn"))]
    assert list(cut.state_dict()) == left
    assert all(module.training for module in cut.modules())


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_drop_then_prune_equals_prune_then_drop(resnet: tuple[ResNet, ModelGraph, Tensor], share: float) -> None:
    model, graph, x = resnet
    removed = some_channels(graph, share)
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    drop_branches_(first, graph, ["blocks.1", "blocks.2"])
    remove_channels_(first, graph, removed)
    remove_channels_(second, graph, removed)
    drop_branches_(second, graph, ["blocks.2", "blocks.1"])
    torch.testing.assert_close(first(x), second(x))
    assert [p.shape for p in first.parameters()] == [p.shape for p in second.parameters()]


def test_an_unknown_branch_is_refused(resnet: tuple[ResNet, ModelGraph, Tensor]) -> None:
    model, graph, _ = resnet
    with pytest.raises(CompressionError, match=r"no residual branch is named \['nowhere'\]"):
        drop_branches_(model, graph, ["blocks.0", "nowhere"])
    assert isinstance(model.blocks[0], Block)


def test_a_cut_net_runs_as_onnx_without_the_branch(resnet: tuple[ResNet, ModelGraph, Tensor]) -> None:
    model, graph, x = resnet
    cut = copy.deepcopy(model)
    drop_branches_(cut, graph, ["blocks.0", "blocks.1", "blocks.2"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.onnx itself warns of its own deprecations
        program = torch.onnx.export(cut, (x,), dynamo=True, verbose=False)
    assert program is not None
    operators = [node.op_type for node in program.model_proto.graph.node]
    n_shortcut = sum(isinstance(module, nn.Conv2d) for module in model.blocks[1].shortcut.modules())
    assert operators.count("Conv") == 1 + n_shortcut
    assert "Add" not in operators


def norms_only(block: nn.Module) -> nn.Module:
    """A post-norm block whose parts add nothing."""
    return nn.Sequential(block.norm1, block.norm2)


@pytest.mark.parametrize("kind", ["bert", "vit", "llama"])
def test_transformer_blocks_without_their_parts_are_their_streams(kind: str) -> None:
    model = randomize(Transformer(kind)).eval()
    ids = torch.randint(0, 20, (2, 7))
    graph = inspect_model(model, ids)
    parts = [branch.name for branch in graph.branches if branch.name.startswith("blocks.0.")]
    assert len(parts) == 2 and len(graph.branches) == 4
    cut = copy.deepcopy(model)
    drop_branches_(cut, graph, parts)
    if kind == "bert":
        expected = copy.deepcopy(model)
        bare = norms_only(expected.blocks[0])
        expected.blocks[0].forward = lambda x, mask: bare(x)
    else:
        expected = silence(model, ["blocks.0"])
    torch.testing.assert_close(cut(ids), expected(ids), atol=1e-5, rtol=1e-5)
    nodes = torch.export.export(cut, (ids,), strict=False).graph.nodes
    assert sum("scaled_dot_product_attention.default" in str(node.target) for node in nodes) == 1
    remove_channels_(cut, graph, some_channels(graph, 0.5))
    assert cut(ids).isfinite().all()


class MaskedStep(nn.Module):
    """Adds attention under a mask to its stream."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(8, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.attention(x, mask)


class Masked(nn.Module):
    """Hands its blocks a mask by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MaskedStep() for _ in range(2))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.head(x)


def test_a_block_called_with_keywords_can_go() -> None:
    model = randomize(Masked()).eval()
    inputs = torch.rand(2, 5, 8), torch.ones(2, 1, 1, 5, dtype=torch.bool)
    graph = inspect_model(model, inputs)
    expected = silence(model, ["blocks.1"])(*inputs)
    drop_branches_(model, graph, ["blocks.1"])
    torch.testing.assert_close(model(*inputs), expected, atol=1e-5, rtol=1e-5)


class Reads(nn.Module):
    """Reads a layer inside a block from outside, so that the block must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = unit(3, 8), Block(8, 8, 1, nn.Identity()), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x))
        return self.head(x.mean((2, 3)) + self.block.conv1.weight.mean())


def test_a_block_whose_parts_are_used_elsewhere_is_frozen_with_the_reason() -> None:
    graph = inspect_model(Reads(), torch.rand(2, 3, 8, 8))
    assert graph.branches == ()
    frozen = next(item for item in graph.frozen if item.what == "branch")
    assert frozen.name == "block"
    assert "a cut copy fails" in frozen.reason


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


def test_a_very_deep_net_is_followed_without_recursion() -> None:
    model = nn.Sequential(nn.Sequential(*(Step() for _ in range(300))), nn.Linear(2, 2))
    graph = inspect_model(model, torch.rand(1, 2))
    assert len(graph.branches) == 300
    assert graph.branches[-1].name == "0.299"
