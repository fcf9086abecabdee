"""Ranks in a candidate: by energy, after pruning, under 8 bits, replayed, saved, exported, cached, offered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.compression import CalibrationStats, compress, rebuild, resolve
from autocompress.compression.low_rank import source as source_module
from autocompress.compression.low_rank.moments import windows
from autocompress.compression.low_rank.recurrent import StackedRecurrent
from autocompress.compression.recipe import Recipe
from autocompress.errors import CompressionError, InputError
from autocompress.graph import ModelGraph, inspect_model
from autocompress.publishing.artifact import load_student, save_student
from autocompress.runtimes import runtime_named
from autocompress.space.candidate import Candidate
from autocompress.space.rank_choice import parse_rank
from autocompress.space.ranks import Split, largest_ranks
from autocompress.space.search_space import SearchSpace
from autocompress.tasks.digits import DigitsNet
from tests.compression.low_rank.reference import random_inputs

INPUTS = (torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)),)
CALIBRATION = [(torch.rand(32, 1, 16, 16, generator=torch.Generator().manual_seed(1)),)]
TARGET = "stage2.0.conv2"
SCHEMES = {"channel": 0.5, "spatial": "spatial:0.25", "tucker": "tucker:0.5"}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return DigitsNet().eval()


@pytest.fixture(scope="module")
def graph(model: nn.Module) -> ModelGraph:
    return inspect_model(model, INPUTS)


def inputs_of(model: nn.Module, path: str) -> Tensor:
    seen = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        model(*CALIBRATION[0])
    handle.remove()
    return seen[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("energy", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_energy_takes_the_smallest_rank_that_keeps_it(
    model: nn.Module, graph: ModelGraph, scheme: str, energy: float
) -> None:
    calibration_stats = CalibrationStats(model, graph, CALIBRATION)
    recipe = resolve(
        model, graph, Candidate(rank_ratio={TARGET: f"{scheme}:energy:{energy}"}), calibration_stats=calibration_stats
    )
    if recipe.kept_dense:
        assert recipe.kept_dense == (TARGET,) and not recipe.ranks
        return
    x = inputs_of(model, TARGET)
    conv = model.get_submodule(TARGET)

    def kept(ranks: tuple[int, ...]) -> float:
        student = rebuild(
            model, graph, Recipe(ranks={TARGET: Split(scheme, ranks)}), CALIBRATION, calibration_stats=calibration_stats
        )
        with torch.no_grad():
            whole = conv(x) if conv.bias is None else conv(x) - conv.bias[:, None, None]
            lost = student.get_submodule(TARGET)(x) - conv(x)
        return 1 - float(lost.square().sum() / whole.square().sum())

    (ranks,) = (split.ranks for split in recipe.ranks.values())
    assert kept(ranks) >= energy - 1e-6
    if min(ranks) > 8:
        assert kept(tuple(rank - 8 for rank in ranks)) < energy


def test_without_data_energy_is_that_of_the_weight(model: nn.Module, graph: ModelGraph) -> None:
    recipe = resolve(model, graph, Candidate(rank_ratio={TARGET: "energy:0.5"}))
    singular = np.linalg.svd(model.get_submodule(TARGET).weight.detach().double().flatten(1).numpy(), compute_uv=False)
    share = np.cumsum(singular**2) / (singular**2).sum()
    smallest = int(np.argmax(share >= 0.5)) + 1
    assert recipe.ranks[TARGET].ranks == (-(-smallest // 8) * 8,)


def test_prune_rank_and_8_bits_in_one_layer_export_and_run(model: nn.Module, graph: ModelGraph, tmp_path: Path) -> None:
    targets = {"stage2.0.conv2": "channel", "stage1.0.conv2": "spatial", "stage2.1.conv2": "tucker"}
    candidate = Candidate(
        prune_ratio={path.replace("conv2", "conv1"): 0.25 for path in targets},
        rank_ratio={path: SCHEMES[scheme] for path, scheme in targets.items()},
        weight_bits={layer.path: 8 for layer in graph.layers},
    )
    student = compress(model, candidate, INPUTS, CALIBRATION, graph=graph)
    for path, scheme in targets.items():
        row = list(student.get_submodule(path))  # type: ignore[call-overload]
        assert [type(part).__name__ for part in row] == ["QuantizedConv2d"] * (3 if scheme == "tucker" else 2)
        assert row[0].in_channels == model.get_submodule(path).in_channels * 3 // 4
    runtime = runtime_named("onnxruntime")
    session = runtime.load(runtime.export(student, INPUTS, tmp_path))
    images = CALIBRATION[0][0][:16]
    with torch.no_grad():
        expected = student(images)
    noise = (session.predict((images,)) - expected).square().mean() / expected.square().mean()
    assert 10 * torch.log10(noise) < -30, "a rounding to the other side now and then, nothing more"
    student.train()(images).square().sum().backward()
    for path in targets:
        assert all(part.weight.grad is not None for part in student.get_submodule(path))  # type: ignore[union-attr]


def test_the_second_moment_of_a_pruned_layer_is_the_part_of_the_kept_channels(
    model: nn.Module, graph: ModelGraph
) -> None:
    candidate = Candidate(prune_ratio={"stage2.0.conv1": 0.5}, rank_ratio={TARGET: 0.5})
    calibration_stats = CalibrationStats(model, graph, CALIBRATION)
    recipe = resolve(model, graph, candidate, calibration_stats=calibration_stats)
    student = rebuild(model, graph, recipe, CALIBRATION, calibration_stats=calibration_stats)
    kept = [i for i in range(64) if i not in recipe.removed["stage2.0.conv1"]]
    conv = nn.Conv2d(32, 64, 3, padding=1)
    rows = windows(conv, inputs_of(model, TARGET)[:, kept])[0].double()
    weight = model.get_submodule(TARGET).weight.detach()[:, kept].double().flatten(1)
    first, second = (part.weight.detach().double().flatten(1) for part in student.get_submodule(TARGET))  # type: ignore[union-attr]
    (rank,) = recipe.ranks[TARGET].ranks
    least = torch.linalg.svdvals(rows @ weight.mT)[rank:].norm()
    assert float((rows @ (weight - second @ first).mT).norm()) == pytest.approx(float(least), rel=1e-4)


def test_a_rank_that_does_not_pay_after_pruning_leaves_the_layer_whole(model: nn.Module, graph: ModelGraph) -> None:
    candidate = Candidate(rank_ratio={TARGET: 1.0, "stage2.0.conv1": "energy:1.0"})
    recipe = resolve(model, graph, candidate, calibration_stats=CalibrationStats(model, graph, CALIBRATION))
    assert recipe.ranks == {}
    assert set(recipe.kept_dense) == {TARGET, "stage2.0.conv1"}


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(40, 24)
        self.conv = nn.Conv1d(24, 32, 3, padding=1)
        self.lstm = nn.LSTM(32, 24, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 32)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv(self.tokens(ids).transpose(1, 2)).relu().transpose(1, 2)
        return self.head(self.lstm(x)[0])  # type: ignore[no-any-return]


MIXED = {"tokens": 0.25, "conv": "tucker:0.5", "lstm": 0.5, "head": "0.25+bits:4"}


def test_every_kind_of_layer_is_split_saved_loaded_and_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Sequences().eval()
    ids = (torch.randint(0, 40, (4, 9), generator=torch.Generator().manual_seed(0)),)
    graph = inspect_model(model, ids)
    recipe = resolve(model, graph, Candidate(rank_ratio=MIXED), calibration_stats=CalibrationStats(model, graph, [ids]))
    assert recipe.ranks.keys() == MIXED.keys()
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    student = rebuild(model, graph, recipe, [ids])
    assert isinstance(student.lstm, StackedRecurrent)
    with torch.no_grad():
        expected = student(*ids)
    save_student(tmp_path, student, recipe)
    again, loaded = load_student(tmp_path, model, graph)
    assert loaded == recipe
    with torch.no_grad():
        assert torch.equal(again(*ids), expected)
    runtime = runtime_named("onnxruntime")
    found = runtime.load(runtime.export(student, ids, tmp_path)).predict(ids)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)  # the 4-bit kernel rounds what it reads
    student.train()(*ids).square().sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_a_pruned_recurrent_net_is_split_as_it_is_left() -> None:
    torch.manual_seed(0)
    model = Sequences().eval()
    ids = (torch.randint(0, 40, (4, 9), generator=torch.Generator().manual_seed(0)),)
    graph = inspect_model(model, ids)
    names = {group.name for group in graph.groups}
    assert {"conv", "lstm"} <= names
    candidate = Candidate(prune_ratio={"conv": 0.5, "lstm": 0.25}, rank_ratio={"lstm": "energy:0.9", "conv": 0.5})
    recipe = resolve(model, graph, candidate, calibration_stats=CalibrationStats(model, graph, [ids]))
    student = rebuild(model, graph, recipe, [ids])
    assert student.lstm.hidden_size == 18
    assert student.conv[1].out_channels == 16  # type: ignore[index,union-attr]
    assert torch.isfinite(student(*ids)).all()


def test_a_cached_rank_decomposes_nothing(model: nn.Module, graph: ModelGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration_stats = CalibrationStats(model, graph, CALIBRATION)
    one = Recipe(ranks={TARGET: Split("channel", (16,))})
    rebuild(model, graph, one, CALIBRATION, calibration_stats=calibration_stats)
    monkeypatch.setattr(source_module, "DECOMPOSITIONS", {})
    monkeypatch.setattr(source_module, "cached_moments", None)
    other = rebuild(
        model, graph, Recipe(ranks={TARGET: Split("channel", (8,))}), CALIBRATION, calibration_stats=calibration_stats
    )
    fresh = rebuild(model, graph, one, CALIBRATION, calibration_stats=calibration_stats)
    assert other.get_submodule(TARGET)[0].out_channels == 8  # type: ignore[index,operator]
    assert fresh.get_submodule(TARGET)[0].out_channels == 16  # type: ignore[index,operator]


def test_plain_factors_are_still_there(model: nn.Module, graph: ModelGraph) -> None:
    candidate = Candidate(rank_ratio={TARGET: 0.5})
    aware = compress(model, candidate, INPUTS, CALIBRATION, graph=graph)
    plain = compress(model, candidate, INPUTS, CALIBRATION, graph=graph, activation_aware=False)
    no_data = compress(model, candidate, INPUTS, graph=graph)
    x, conv = inputs_of(model, TARGET), model.get_submodule(TARGET)
    with torch.no_grad():
        errors = [float((each.get_submodule(TARGET)(x) - conv(x)).norm()) for each in (aware, plain, no_data)]
    assert errors[0] < 0.95 * errors[1]
    assert errors[1] == pytest.approx(errors[2], rel=1e-5)


RULES = [
    {
        "match": "re:.*",
        "rank_ratio": [None, 0.5, "channel:0.25", "spatial:0.25", "tucker:0.5", "energy:0.95", "0.125+sparse:0.05"],
        "weight_bits": [32, 8],
    }
]


def test_a_space_offers_schemes_where_they_fit(model: nn.Module, graph: ModelGraph) -> None:
    space = SearchSpace.from_rules(graph, RULES)
    choices = {knob.target: knob.choices for knob in space.knobs if knob.kind == "rank_ratio"}
    assert choices[TARGET] == (None, 0.5, 0.25, "spatial:0.25", "tucker:0.5", "energy:0.95", "0.125+sparse:0.05")
    linear = next(layer.path for layer in graph.layers if layer.kind == "linear")
    assert not {"spatial:0.25", "tucker:0.5"} & set(choices.get(linear, ()))
    assert space.uniform(rank_ratio="tucker:0.4").rank_ratio[TARGET] == "tucker:0.5"
    for seed in range(3):
        candidate = space.sample(seed)
        assert space.candidate(space.choices_of(candidate)) == candidate


def test_ranks_that_a_profile_shows_to_be_slower_are_labelled(graph: ModelGraph) -> None:
    space = SearchSpace.from_rules(graph, RULES)
    label = {knob.target: knob.size_only for knob in space.knobs if knob.kind == "rank_ratio"}
    assert label[TARGET] == ("0.125+sparse:0.05",), "known without a profile: no multiplication is saved"
    labelled = space.label_size_only(lambda path, choice: path == TARGET and choice == 0.5)
    label = {knob.target: knob.size_only for knob in labelled.knobs if knob.kind == "rank_ratio"}
    assert label[TARGET] == (0.5, "0.125+sparse:0.05")
    assert labelled.digest == space.digest, "a label changes no choice"


@pytest.mark.parametrize("grid", [1, 3, 4, 16])
def test_the_grid_of_a_candidate_is_that_of_its_ranks(model: nn.Module, graph: ModelGraph, grid: int) -> None:
    calibration_stats = CalibrationStats(model, graph, CALIBRATION)
    for choice in (0.4, "spatial:0.4", "tucker:0.4", "energy:0.5"):
        candidate = Candidate(rank_ratio={TARGET: choice}, rank_grid=grid)
        assert Candidate.from_dict(candidate.to_dict()) == candidate
        ranks = resolve(model, graph, candidate, calibration_stats=calibration_stats).ranks[TARGET].ranks
        assert all(rank % grid == 0 for rank in ranks), (choice, ranks)
        if isinstance(choice, str) and choice.startswith("energy"):
            continue
        asked = parse_rank(choice)
        exact = [0.4 * largest for largest in largest_ranks(graph.layer(TARGET), asked.scheme)]
        assert all(abs(rank - share) <= grid / 2 for rank, share in zip(ranks, exact, strict=True)), (choice, ranks)


def test_a_grid_without_ranks_asks_nothing() -> None:
    assert Candidate(rank_grid=4) == Candidate()
    assert "rank_grid" not in Candidate(rank_ratio={TARGET: 0.5}).to_dict(), "older candidates keep their digests"
    with pytest.raises(InputError, match="`rank_grid >= 1` must hold"):
        Candidate(rank_ratio={TARGET: 0.5}, rank_grid=0)


def test_what_does_not_fit_is_named(model: nn.Module, graph: ModelGraph) -> None:
    linear = next(layer.path for layer in graph.layers if layer.kind == "linear")
    with pytest.raises(CompressionError, match=f"rank_ratio 'spatial:0.5' does not fit layer '{linear}'"):
        resolve(model, graph, Candidate(rank_ratio={linear: "spatial:0.5"}))
    with pytest.raises(InputError, match="offers 'radial:0.5'"):
        SearchSpace.from_rules(graph, [{"match": "re:.*", "rank_ratio": [None, "radial:0.5"]}])
    with pytest.raises(CompressionError, match="recipe is damaged"):
        Recipe.from_dict(
            {**Recipe().to_dict(), "ranks": {TARGET: {"scheme": "radial", "ranks": [8], "residual": None}}}
        )


def test_activations_that_are_not_finite_end_the_candidate_with_a_name(model: nn.Module, graph: ModelGraph) -> None:
    bad = random_inputs(0, 4, 1, 16, 16)
    bad[0, 0, 3, 3] = float("nan")
    with pytest.raises(CompressionError, match="inputs of layer .* must be finite"):
        compress(model, Candidate(rank_ratio={TARGET: 0.5}), INPUTS, [(bad,)], graph=graph)
