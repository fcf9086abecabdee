"""Weights that go back into the uncompressed model come out again, exactly; nothing else does."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from autocompress.compression import rebuild, resolve
from autocompress.compression.inherit import scatter_back, source_indices
from autocompress.compression.low_rank.merge import merge_hidden
from autocompress.compression.low_rank.recurrent import split_recurrent
from autocompress.compression.recipe import Recipe
from autocompress.errors import CompressionError
from autocompress.graph import ModelGraph, inspect_model
from autocompress.space.candidate import Candidate
from autocompress.task import Inputs, call_model
from autocompress.tasks.digits import DigitsNet
from tests.graph.nets import CNNS, Recurrent, Transformer, randomize

IMAGES = (torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)),)
TOKENS = (torch.randint(0, 20, (4, 9), generator=torch.Generator().manual_seed(0)),)
STEPS = (torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([6, 3, 5, 1]))


def made(name: str) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    if name in CNNS:
        kind, shape = CNNS[name]
        return randomize(kind()).eval(), (torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)),)
    if name == "lstm":
        return randomize(Recurrent()).eval(), STEPS
    if name == "digits":
        return randomize(DigitsNet()).eval(), IMAGES
    return randomize(Transformer(name)).eval(), TOKENS


def trained(student: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight and statistic somewhere else, as training leaves it; zeros of a sparse layer stay."""
    student = copy.deepcopy(student)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*student.named_parameters(), *student.named_buffers()]:
            if tensor.is_floating_point() and "quantizer" not in name:
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.mul_(0.7 + 0.6 * noise)
    return student.eval()


def outputs(model: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return call_model(model, inputs)  # type: ignore[no-any-return]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if "quantizer" not in name}


def choose(graph: ModelGraph, knobs: str, share: float = 0.5) -> Candidate:
    """The strongest candidate of these kinds, every second branch dropped."""
    drop = frozenset(branch.name for branch in graph.branches[::2]) if "drop" in knobs else frozenset()
    layers = [
        layer for layer in graph.layers if not any(layer.path in b.layers for b in graph.branches if b.name in drop)
    ]
    return Candidate(
        drop=drop,
        prune_ratio={group.name: share for group in graph.groups} if "prune" in knobs else {},
        weight_bits={layer.path: 8 for layer in layers if layer.kind != "embedding"} if "bits" in knobs else {},
        sparsity={layer.path: 0.5 for layer in layers if layer.kind in ("linear", "conv2d")}
        if "sparse" in knobs
        else {},
    )


@pytest.mark.parametrize("knobs", ["", "prune", "drop", "drop prune", "prune sparse", "drop prune sparse"])
@pytest.mark.parametrize("name", [*CNNS, "bert", "gpt", "vit", "llama", "lstm", "digits"])
def test_the_same_recipe_gives_the_student_again(name: str, knobs: str) -> None:
    model, inputs = made(name)
    graph = inspect_model(model, inputs)
    recipe = resolve(model, graph, choose(graph, knobs))
    student = trained(rebuild(model, graph, recipe))
    filled = scatter_back(student, model, graph, recipe)
    assert {n: t.shape for n, t in filled.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    again = rebuild(filled, graph, recipe)
    ours, theirs = weights(again), weights(student)
    assert ours.keys() == theirs.keys()
    for path in ours:
        assert torch.equal(ours[path], theirs[path]), path
    torch.testing.assert_close(outputs(again, inputs), outputs(student, inputs), atol=1e-5, rtol=0)
    assert not torch.allclose(outputs(rebuild(model, graph, recipe), inputs), outputs(student, inputs), atol=1e-3)


@pytest.mark.parametrize("name", [*CNNS, "bert", "gpt", "vit", "llama", "lstm", "digits"])
def test_the_whole_model_computes_what_the_pruned_student_computes(name: str) -> None:
    """Kept channels do not read what the student lacks; only a transformer's norms see the width of its stream."""
    model, inputs = made(name)
    graph = inspect_model(model, inputs)
    stream = {"tokens"} if isinstance(model, Transformer) else set()
    inner = Candidate(prune_ratio={group.name: 0.5 for group in graph.groups if group.name not in stream})
    recipe = resolve(model, graph, inner)
    assert recipe.removed
    student = trained(rebuild(model, graph, recipe))
    filled = scatter_back(student, model, graph, recipe)
    torch.testing.assert_close(outputs(filled, inputs), outputs(student, inputs), atol=1e-5, rtol=1e-5)


def by_rank(graph: ModelGraph, schemes: dict[str, str | float], bits: bool) -> Candidate:
    """Channels pruned, then every layer split that takes the scheme of its kind, all rounded where asked."""
    layers = [layer for layer in graph.layers if layer.kind in schemes]
    return Candidate(
        prune_ratio={group.name: 0.25 for group in graph.groups},
        rank_ratio={layer.path: schemes[layer.kind] for layer in layers},
        weight_bits={layer.path: 8 for layer in graph.layers} if bits else {},
        rank_grid=2,
    )


@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize(
    ("name", "schemes"),
    [
        ("digits", {"conv2d": 0.5, "linear": 0.5}),
        ("digits", {"conv2d": "spatial:0.25"}),
        ("digits", {"conv2d": "tucker:0.5"}),
        ("bert", {"linear": 0.5, "embedding": 0.5}),
        ("lstm", {"lstm": 0.5, "gru": 0.5, "linear": 0.5}),
    ],
)
def test_factors_are_merged_and_split_again(name: str, schemes: dict[str, str | float], bits: bool) -> None:
    model, inputs = made(name)
    graph = inspect_model(model, inputs)
    recipe = resolve(model, graph, by_rank(graph, schemes, bits))
    assert recipe.ranks
    student = trained(rebuild(model, graph, recipe, [inputs]))
    plain = replace(recipe, bits={})  # activation grids are set from data: compare the float functions
    latent = rebuild(model, graph, plain)
    latent.load_state_dict(weights(student))
    filled = scatter_back(student, model, graph, recipe)
    again = rebuild(filled, graph, plain, [])
    torch.testing.assert_close(outputs(again, inputs), outputs(latent, inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["digits", "bert", "lstm", "conv_resnet"])
def test_with_8_bits_the_same_grids_give_the_same_function(name: str) -> None:
    model, inputs = made(name)
    graph = inspect_model(model, inputs)
    recipe = resolve(model, graph, choose(graph, "drop prune bits sparse"))
    assert recipe.bits
    if name == "lstm":  # torch's kernel differs in the last bit from call to call, which can flip a rounded activation
        recipe = replace(recipe, bits=dict.fromkeys(recipe.bits, "8w"))
    student = trained(rebuild(model, graph, recipe, [inputs]))
    again = rebuild(scatter_back(student, model, graph, recipe), graph, recipe).eval()
    grids = {path: tensor for path, tensor in student.state_dict().items() if "quantizer" in path}
    assert not again.load_state_dict(grids, strict=False).unexpected_keys
    torch.testing.assert_close(outputs(again, inputs), outputs(student, inputs), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_split_hidden_state_keeps_its_hidden_weights() -> None:
    """The output's projection is lost: the levels' own states are those of the split LSTM."""
    torch.manual_seed(0)
    model = nn.LSTM(5, 8, 2, batch_first=True).eval()
    inputs = (torch.randn(3, 6, 5),)
    split = split_recurrent(model, "recurrent", [_random_hidden(8, 4, seed) for seed in (0, 1)])
    merged = merge_hidden(split)
    lower, upper = split.levels
    with torch.no_grad():
        steps, (_, cell) = merged(*inputs)
        first, _ = lower(*inputs)
        last, (_, inner) = upper(split.outputs[0](first))
        projected = steps @ upper.weight_hr_l0.mT  # type: ignore[operator,union-attr]
    torch.testing.assert_close(projected, last, atol=1e-5, rtol=0)
    torch.testing.assert_close(cell[1], inner[0], atol=1e-5, rtol=0)


def _random_hidden(n_hidden: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(1, rank, n_hidden, generator=generator) * 0.3
    return first, torch.randn(1, 5 * n_hidden, rank, generator=generator) * 0.3


def test_a_smaller_candidate_takes_over_what_it_keeps() -> None:
    """Channels are chosen by the uncompressed model, so that choices are nested and all kept values are trained."""
    model, inputs = made("conv_resnet")
    graph = inspect_model(model, inputs)
    large, small = (resolve(model, graph, choose(graph, "prune", share)) for share in (0.25, 0.5))
    assert all(set(large.removed[name]) < set(small.removed[name]) for name in large.removed)
    student = trained(rebuild(model, graph, large))
    child = rebuild(scatter_back(student, model, graph, large), graph, small)
    known = source_indices(model, graph, large)
    values = {
        path: dict(zip(known[path].flatten().tolist(), tensor.flatten().tolist(), strict=True))
        for path, tensor in weights(student).items()
    }
    for path, index in source_indices(model, graph, small).items():
        taken = [values[path][place] for place in index.flatten().tolist()]
        assert taken == child.state_dict()[path].flatten().tolist(), path


def test_sources_are_those_of_a_mask() -> None:
    model, inputs = made("conv_resnet")
    graph = inspect_model(model, inputs)
    recipe = resolve(model, graph, choose(graph, "drop prune"))
    plain = rebuild(model, graph, recipe).state_dict()
    for path, index in source_indices(model, graph, recipe).items():
        assert torch.equal(model.state_dict()[path].flatten()[index], plain[path]), path


def test_another_recipe() -> None:
    model, inputs = made("digits")
    graph = inspect_model(model, inputs)
    recipe = resolve(model, graph, choose(graph, "prune"))
    with pytest.raises(CompressionError, match="pass the recipe by which this student was made"):
        scatter_back(rebuild(model, graph, recipe), model, graph, Recipe())
