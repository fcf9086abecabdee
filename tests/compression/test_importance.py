"""Every criterion against an independent reference, over whole groups, on nets of many habits."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compression import calibration_stats as evidence_module
from autocompress.compression import compress, resolve
from autocompress.compression.calibration_stats import CalibrationStats
from autocompress.compression.importance import CRITERIA, criterion_named, least_important
from autocompress.errors import CompressionError, InputError
from autocompress.graph import ChannelGroup, inspect_model
from autocompress.graph.shrink import tensor_at
from autocompress.space.candidate import Candidate
from autocompress.task import Batch, Inputs, SupervisedTask
from tests.graph.nets import CNNS, PlainNet, Recurrent, Transformer, pad_resnet, randomize

N_BINS = 32


class Case:
    """A random net in float64 with two batches; `calibration_stats` has everything that a criterion can ask for."""

    def __init__(self, model: nn.Module, size: Sequence[int], seed: int = 0) -> None:
        self.model = randomize(model, seed).eval().double()
        source = torch.Generator().manual_seed(seed)
        self.batches: list[Batch] = []
        for _ in range(2):
            x = torch.rand(6, *size, generator=source, dtype=torch.float64)
            shape = self.model(x)[:, 0].shape  # a class for each sample, or for each of its pixels
            self.batches.append(((x,), torch.randint(2, shape, generator=source)))
        self.graph = inspect_model(self.model, self.batches[0][0])
        self.calibration_stats = self.evidence_of(self.model)

    def evidence_of(self, model: nn.Module) -> CalibrationStats:
        task = SupervisedTask(model, self.batches, self.batches, self.batches)
        return CalibrationStats(model, self.graph, [inputs for inputs, _ in self.batches], task)


def plain(seed: int = 0) -> Case:
    return Case(PlainNet(), (1, 8, 8), seed)


def couplings(case: Case, group: ChannelGroup) -> Iterator[tuple[Tensor, int, list[tuple[int, ...]]]]:
    """Parameters of two or more dimensions that lose entries, with dimension and slots."""
    parameters = dict(case.model.named_parameters())
    for item in group.couplings:
        if item.tensor in parameters and parameters[item.tensor].ndim > 1:
            yield parameters[item.tensor].detach(), item.dim, list(item.slots)


def shares(figures: list[list[float]]) -> np.ndarray:
    return sum(np.array(row) / sum(row) for row in figures)  # type: ignore[return-value]


@given(st.integers(0, 1000), st.sampled_from([1, 2]))
@settings(max_examples=5)
def test_magnitudes_are_each_layers_share(seed: int, power: int) -> None:
    case = plain(seed)
    for group in case.graph.groups:
        expected = shares(
            [
                [float((weight.numpy().take(slot, axis=dim).__abs__() ** power).sum()) for slot in slots]
                for weight, dim, slots in couplings(case, group)
            ]
        )
        found = CRITERIA[f"l{power}"](case.calibration_stats, group).numpy()
        np.testing.assert_allclose(found, expected ** (1 / power), rtol=1e-9)


@given(st.integers(0, 1000))
@settings(max_examples=5)
def test_fpgm_sums_the_distances_to_all_other_channels(seed: int) -> None:
    case = plain(seed)
    for group in case.graph.groups:
        layers = []
        for weight, dim, slots in couplings(case, group):
            rows = [weight.numpy().take(slot, axis=dim).ravel() for slot in slots]
            layers.append([sum(math.dist(one, other) for other in rows) for one in rows])
        np.testing.assert_allclose(CRITERIA["fpgm"](case.calibration_stats, group).numpy(), shares(layers), rtol=1e-6)


def test_fpgm_removes_what_others_can_stand_in_for() -> None:
    case = plain()
    (group,) = (group for group in case.graph.groups if group.name == "hidden")
    weakened = copy.deepcopy(case.model)
    with torch.no_grad():
        for weight in (weakened.get_submodule("hidden").weight, weakened.get_submodule("head").weight.T):  # type: ignore[union-attr,operator]
            weight[4] = weight.mean(0)  # type: ignore[index,union-attr,operator]
            weight[7] = 0.01 * weight[7]  # type: ignore[index,operator]
    calibration_stats = case.evidence_of(weakened)
    assert 4 in least_important(calibration_stats, group, 2, CRITERIA["fpgm"])
    large = copy.deepcopy(weakened)
    with torch.no_grad():
        for weight in (large.get_submodule("hidden").weight, large.get_submodule("head").weight.T):  # type: ignore[union-attr,operator]
            weight += 5.0  # type: ignore[operator]
    assert least_important(case.evidence_of(large), group, 1, CRITERIA["fpgm"]) == (4,)


@pytest.mark.parametrize(
    ("make", "size"),
    [(PlainNet, (1, 8, 8)), (pad_resnet, (3, 8, 8))],
)
def test_taylor_is_the_squared_slope_of_the_loss_by_finite_differences(make: type[nn.Module], size: list[int]) -> None:
    case, step = Case(make(), size), 1e-7

    def loss(group: ChannelGroup, channel: int, scale: float, batch: Batch) -> float:
        scaled = copy.deepcopy(case.model)
        parameters = dict(scaled.named_parameters())
        with torch.no_grad():
            for item in group.couplings:
                if item.tensor in parameters:
                    index = torch.tensor(item.slots[channel])
                    weight = parameters[item.tensor]
                    weight.index_copy_(item.dim, index, scale * weight.index_select(item.dim, index))
            return F.cross_entropy(scaled(*batch[0]), batch[1]).item()

    for group in case.graph.groups:
        found = CRITERIA["taylor"](case.calibration_stats, group)
        for channel in (0, group.n_channels - 1):
            slopes = [
                (loss(group, channel, 1 + step, batch) - loss(group, channel, 1 - step, batch)) / (2 * step)
                for batch in case.batches
            ]
            assert found[channel].item() == pytest.approx(np.square(slopes).mean(), rel=1e-4, abs=1e-12)


def plain_outputs(model: PlainNet, case: Case) -> dict[str, Tensor]:
    """Outputs of the three producers after norm and ReLU, over all batches, by hand."""
    x = torch.cat([inputs[0] for inputs, _ in case.batches])  # type: ignore[index]
    first = model.features[0](x)
    second = model.features[2](model.features[1](first))
    return {
        "features.0.0": first,
        "features.2.0": second,
        "hidden": model.hidden(model.features[3](second).flatten(1)),
    }


def test_activation_and_entropy_of_what_producers_give() -> None:
    case = plain()
    for name, output in plain_outputs(case.model, case).items():  # type: ignore[arg-type]
        group = case.graph.group(name)
        values = output.detach().reshape(len(output), group.n_channels, -1).numpy()
        magnitude = np.abs(values).mean((0, 2))
        np.testing.assert_allclose(
            CRITERIA["activation"](case.calibration_stats, group), magnitude / magnitude.sum(), rtol=1e-9
        )
        pooled = values.mean(2)
        entropies = []
        for channel in range(group.n_channels):
            counts, _ = np.histogram(pooled[:, channel], N_BINS)
            p = counts[counts > 0] / counts.sum()
            entropies.append(-(p * np.log(p)).sum())
        np.testing.assert_allclose(CRITERIA["entropy"](case.calibration_stats, group), entropies, rtol=1e-9)


def test_every_producer_of_a_residual_group_weighs_the_same() -> None:
    case = Case(pad_resnet(), (3, 8, 8))
    group = case.graph.group("stem.0")
    assert {"stem.0", "blocks.0.conv2"} <= set(group.producers)
    names = [path for path in group.producers if path in case.calibration_stats.activations]
    assert len(names) == len(group.producers)
    assert CRITERIA["activation"](case.calibration_stats, group).sum().item() == pytest.approx(len(names))


def test_bn_scale_takes_the_norms_of_the_group_and_falls_back_to_l2() -> None:
    case = Case(pad_resnet(), (3, 8, 8))
    group = case.graph.group("blocks.1.conv1")
    scale = case.model.get_submodule("blocks.1.bn1").weight.detach().abs().numpy()  # type: ignore[union-attr,operator]
    np.testing.assert_allclose(CRITERIA["bn_scale"](case.calibration_stats, group), scale / scale.sum(), rtol=1e-9)
    without = plain()
    hidden = without.graph.group("hidden")
    found = CRITERIA["bn_scale"](without.calibration_stats, hidden)
    assert torch.equal(found, CRITERIA["l2"](without.calibration_stats, hidden))


def test_random_follows_the_seed_and_the_group() -> None:
    case = plain()
    first, second = case.graph.groups[:2]
    other = CalibrationStats(case.model, case.graph, seed=1)
    draw = CRITERIA["random"]
    assert torch.equal(draw(case.calibration_stats, first), draw(case.evidence_of(case.model), first))
    assert not torch.equal(draw(case.calibration_stats, first), draw(other, first))
    assert not torch.equal(draw(case.calibration_stats, first)[:4], draw(case.calibration_stats, second)[:4])


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"random"}))
@pytest.mark.parametrize("net", ["plain", "pad_resnet"])
def test_importance_moves_with_the_channels(name: str, net: str) -> None:
    case = plain() if net == "plain" else Case(pad_resnet(), (3, 8, 8))
    for group in case.graph.groups:
        order = torch.randperm(group.n_channels, generator=torch.Generator().manual_seed(1))
        moved = copy.deepcopy(case.model)
        with torch.no_grad():
            for item in group.couplings:
                tensor = tensor_at(moved, item.tensor)
                assert tensor is not None
                slots = torch.tensor(item.slots)
                tensor.index_copy_(item.dim, slots.flatten(), tensor.index_select(item.dim, slots[order].flatten()))
        x = case.batches[0][0][0]  # type: ignore[index]
        torch.testing.assert_close(moved(x), case.model(x))
        found = CRITERIA[name](case.evidence_of(moved), group)
        torch.testing.assert_close(found, CRITERIA[name](case.calibration_stats, group)[order], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("net", sorted(CNNS))
def test_every_criterion_judges_every_group_of_any_net(net: str) -> None:
    make, size = CNNS[net]
    case = Case(make(), size)
    assert case.graph.groups
    for group in case.graph.groups:
        for criterion in CRITERIA.values():
            removed = least_important(case.calibration_stats, group, 1, criterion)
            assert len(removed) == 1 and 0 <= removed[0] < group.n_channels


def test_recurrent_units_and_heads_are_judged_too() -> None:
    steps = torch.randint(0, 5, (4,))
    recurrent, x = randomize(Recurrent()).eval(), (torch.rand(4, 5, 5), steps)
    llama, ids = randomize(Transformer("llama")).eval(), (torch.randint(0, 20, (2, 7)),)
    for model, inputs in ((recurrent, x), (llama, ids)):
        graph = inspect_model(model, inputs)
        batches: list[Batch] = [(inputs, torch.zeros(len(inputs[0]), dtype=torch.int64))]
        calibration_stats = CalibrationStats(model, graph, [inputs], SupervisedTask(model, batches, batches, batches))
        for group in graph.groups:
            for criterion in CRITERIA.values():
                assert len(least_important(calibration_stats, group, 1, criterion)) == 1


@pytest.mark.parametrize("name", ["taylor", "activation", "entropy"])
def test_what_needs_data_says_so(name: str) -> None:
    case = plain()
    with pytest.raises(CompressionError, match="pass `(task|calibration)="):
        resolve(case.model, case.graph, Candidate(prune_ratio={"hidden": 0.5}), name)


def test_a_wrong_name_shows_near_ones() -> None:
    with pytest.raises(InputError, match="no importance is called 'tailor'; try taylor"):
        criterion_named("tailor")
    assert criterion_named(f"{__name__}:by_index") is by_index


def by_index(_calibration_stats: CalibrationStats, group: ChannelGroup) -> Tensor:
    return torch.arange(group.n_channels)


def broken(_calibration_stats: CalibrationStats, group: ChannelGroup) -> Tensor:
    return torch.full((group.n_channels,), math.nan)


def test_a_criterion_of_ones_own() -> None:
    case = plain()
    x = case.batches[0][0]
    candidate = Candidate(prune_ratio={"hidden": 0.5})
    student = compress(case.model, candidate, x, graph=case.graph, importance=f"{__name__}:by_index")
    weight = case.model.get_submodule("hidden").weight
    assert torch.equal(student.get_submodule("hidden").weight, weight[5:])  # type: ignore[index,arg-type]
    with pytest.raises(CompressionError, match="10 finite figures for group 'hidden'"):
        compress(case.model, candidate, x, graph=case.graph, importance=f"{__name__}:broken")


def test_statistics_are_collected_once_and_the_model_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    case = plain()
    before = copy.deepcopy(case.model.state_dict())
    n_calls = 0
    run = evidence_module.call_model

    def counting(model: nn.Module, inputs: Inputs) -> object:
        nonlocal n_calls
        n_calls += 1
        return run(model, inputs)

    monkeypatch.setattr(evidence_module, "call_model", counting)
    for ratio in (0.25, 0.5, 0.75):
        candidate = Candidate(prune_ratio={group.name: ratio for group in case.graph.groups})
        for name in CRITERIA:
            resolve(case.model, case.graph, candidate, name, case.calibration_stats)
    assert n_calls == 2 * len(case.batches), "one pass for activations, one for gradients"
    assert all(torch.equal(before[name], value) for name, value in case.model.state_dict().items())
    assert all(parameter.grad is None for parameter in case.model.parameters())
    assert not any(module._forward_hooks for module in case.model.modules())
