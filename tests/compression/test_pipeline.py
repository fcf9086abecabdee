"""All operations together on real nets: the model is untouched, the result is plain, exact where it must be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autocompress.compression import compress, rebuild, resolve
from autocompress.compression.low_rank.matrices import gone_slots, pruned_layer
from autocompress.compression.recipe import Recipe
from autocompress.compression.reconstruct import reestimate_norms_
from autocompress.errors import CompressionError
from autocompress.graph import ModelGraph, inspect_model
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.tasks.digits import DigitsNet

INPUTS = (torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)),)
CALIBRATION = [(torch.rand(32, 1, 16, 16, generator=torch.Generator().manual_seed(1)),)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return DigitsNet().eval()


@pytest.fixture(scope="module")
def graph(model: nn.Module) -> ModelGraph:
    return inspect_model(model, INPUTS)


def test_all_three_on_one_layer(model: nn.Module, graph: ModelGraph) -> None:
    before = copy.deepcopy(model.state_dict())
    target = "stage2.0.conv1"
    candidate = Candidate(prune_ratio={target: 0.5}, rank_ratio={target: 0.5}, weight_bits={target: 8})
    student = compress(model, candidate, INPUTS, CALIBRATION, graph=graph)
    pair = student.get_submodule(target)
    assert [type(part).__name__ for part in pair] == ["QuantizedConv2d", "QuantizedConv2d"]  # type: ignore[union-attr]
    assert pair[1].out_channels == 32  # type: ignore[index,union-attr]
    assert pair[0].out_channels == 16, "half of the pruned layer's largest rank"  # type: ignore[index,union-attr]
    assert student.get_submodule("stage2.0.conv2").in_channels == 32
    assert type(student) is type(model)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    student.train()(CALIBRATION[0][0]).sum().backward()
    assert torch.equal(copy.deepcopy(student).eval()(*INPUTS), student.eval()(*INPUTS))


def test_norms_are_estimated_before_rounding(model: nn.Module, graph: ModelGraph) -> None:
    pruned = Candidate(prune_ratio={"stage1.0.conv1": 0.5})
    both = Candidate(prune_ratio={"stage1.0.conv1": 0.5}, weight_bits={layer.path: 8 for layer in graph.layers})
    one = compress(model, pruned, INPUTS, CALIBRATION, graph=graph)
    other = compress(model, both, INPUTS, CALIBRATION, graph=graph)
    x = CALIBRATION[0][0]
    noise, signal = (one(x) - other(x)).pow(2).mean(), one(x).var()
    assert noise < 10 ** (-20 / 10) * signal, "8 bits on top of pruning keep a signal-to-noise ratio above 20 dB"
    for name, norm in one.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert torch.equal(norm.running_var, other.get_submodule(name).running_var)  # type: ignore[arg-type]


def test_every_sampled_candidate_of_the_default_space_runs(model: nn.Module, graph: ModelGraph) -> None:
    space = SearchSpace.load("default", graph)
    for seed in range(4):
        student = compress(model, space.sample(seed), INPUTS, CALIBRATION, graph=graph)
        assert torch.isfinite(student(CALIBRATION[0][0])).all()


def test_drop_with_prune_and_bits_leaves_nothing_of_the_branch(model: nn.Module, graph: ModelGraph) -> None:
    assert [branch.name for branch in graph.branches], "the blocks are residual"
    name = graph.branches[-1].name
    candidate = Candidate(
        prune_ratio={group.name: 0.25 for group in graph.groups},
        drop=frozenset({name}),
        weight_bits={layer.path: 8 for layer in graph.layers},
    )
    student = compress(model, candidate, INPUTS, CALIBRATION, graph=graph)
    assert not [key for key in student.state_dict() if key.startswith(f"{name}.") and "conv" in key]
    assert torch.isfinite(student(*INPUTS)).all()


def test_the_baseline_is_the_same_function(model: nn.Module, graph: ModelGraph) -> None:
    student = compress(model, Candidate(), INPUTS, graph=graph)
    assert torch.equal(student(*INPUTS), model(*INPUTS))


def test_recipe_replays_to_the_same_structure(model: nn.Module, graph: ModelGraph) -> None:
    candidate = SearchSpace.load("default", graph).sample(3)
    recipe = resolve(model, graph, candidate)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    one, other = rebuild(model, graph, recipe), rebuild(model, graph, Recipe.from_dict(recipe.to_dict()))
    assert {k: v.shape for k, v in one.state_dict().items()} == {k: v.shape for k, v in other.state_dict().items()}
    for layer in graph.layers:
        module = dict(one.named_modules()).get(layer.path)
        if isinstance(module, nn.Conv2d | nn.Linear):
            gone = gone_slots(graph, recipe.removed)
            assert tuple(module.weight.shape) == pruned_layer(layer, gone).weight_shape


def test_the_least_important_channels_go(model: nn.Module, graph: ModelGraph) -> None:
    weakened = copy.deepcopy(model)
    conv, reader = weakened.get_submodule("stage1.0.conv1"), weakened.get_submodule("stage1.0.conv2")
    with torch.no_grad():
        conv.weight[[3, 5, 8, 13, 17, 21, 28, 30]] *= 1e-3  # type: ignore[operator,index]
        reader.weight[:, [3, 5, 8, 13, 17, 21, 28, 30]] *= 1e-3  # type: ignore[operator,index]
    recipe = resolve(weakened, graph, Candidate(prune_ratio={"stage1.0.conv1": 0.25}))
    assert recipe.removed == {"stage1.0.conv1": (3, 5, 8, 13, 17, 21, 28, 30)}


def test_names_that_the_model_does_not_have(model: nn.Module, graph: ModelGraph) -> None:
    with pytest.raises(CompressionError, match="prune_ratio must name parts of the model, but it has no 'nothing'"):
        resolve(model, graph, Candidate(prune_ratio={"nothing": 0.5}))


def test_norm_statistics_are_plain_averages_over_the_batches() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9)).eval()
    batches = [torch.randn(50, 3) * 3 + 1 for _ in range(4)]
    reestimate_norms_(model, [(batch,) for batch in batches])
    norm = model[0]
    assert torch.allclose(norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0), atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(norm.running_var, torch.stack([b.var(0) for b in batches]).mean(0), atol=1e-4)  # type: ignore[arg-type]
    assert norm.momentum == 0.1 and not model.training
