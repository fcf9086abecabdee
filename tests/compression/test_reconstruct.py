"""Least-squares refits against numpy, patches cut out by hand; what can be recovered is, and the model is untouched."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.compression import compress, resolve
from autocompress.compression import reconstruct as reconstruct_module
from autocompress.compression.prune import remove_channels_
from autocompress.compression.reconstruct import reconstruct_
from autocompress.errors import CompressionError
from autocompress.graph import inspect_model
from autocompress.space.candidate import Candidate
from autocompress.task import Inputs, call_model
from autocompress.tasks.digits import DigitsNet, DigitsTask
from tests.graph.masking import some_channels
from tests.graph.nets import CNNS, Transformer, randomize
from tests.shared.tasks import tiny_task, trained_model

Array = NDArray[np.float64]


def pruned(model: nn.Module, inputs: Inputs, removed: dict[str, list[int]], ridge: float, refit: bool) -> nn.Module:
    graph = inspect_model(model, inputs)
    student = copy.deepcopy(model)
    remove_channels_(student, graph, removed)
    if refit:
        reconstruct_(student, model, graph, removed, [inputs], ridge)
    return student


def by_lstsq(rows: Array, target: Array, weight: Array, ridge: float) -> Array:
    """The ridge solution as one augmented least-squares problem, held to `weight` (n_unknowns, n_outputs)."""
    strength = np.sqrt(ridge * np.square(rows).sum(0).mean())
    n_unknowns = rows.shape[1]
    left = np.vstack([rows, strength * np.eye(n_unknowns)])
    right = np.vstack([target, strength * weight])
    return np.linalg.lstsq(left, right, rcond=None)[0]


def patches(x: Array, kernel: int, stride: int, padding: int, dilation: int) -> Array:
    """Every patch that a convolution reads, (n_samples × n_positions, channels × kernel × kernel)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    reach = dilation * (kernel - 1) + 1
    rows = [
        image[:, i : i + reach : dilation, j : j + reach : dilation].ravel()
        for image in x
        for i in range(0, x.shape[2] - reach + 1, stride)
        for j in range(0, x.shape[3] - reach + 1, stride)
    ]
    return np.array(rows)


@given(
    st.integers(0, 1000),
    st.sampled_from([1e-4, 1e-1]),
    st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]), st.sampled_from([0, 1]), st.sampled_from([1, 2])),
    st.booleans(),
)
@settings(max_examples=12)
def test_a_convolution_gets_the_solution_of_numpy(
    seed: int, ridge: float, shape: tuple[int, int, int, int], bias: bool
) -> None:
    kernel, stride, padding, dilation = shape
    second = nn.Conv2d(6, 5, kernel, stride, padding, dilation, bias=bias)
    model = randomize(nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), second), seed).double().eval()
    x = torch.randn(7, 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    removed = {"0": [1, 4]}
    plain, student = (pruned(model, (x,), removed, ridge, refit) for refit in (False, True))
    with torch.no_grad():
        hidden, wanted = plain[1](plain[0](x)), model(x)  # type: ignore[index]
    rows = patches(hidden.numpy(), kernel, stride, padding, dilation)
    weight = plain[2].weight.detach().flatten(1).numpy().T  # type: ignore[index,union-attr]
    if bias:
        rows = np.hstack([rows, np.ones((len(rows), 1))])
        weight = np.vstack([weight, plain[2].bias.detach().numpy()])  # type: ignore[index,union-attr]
    expected = by_lstsq(rows, wanted.permute(0, 2, 3, 1).reshape(len(rows), -1).numpy(), weight, ridge)
    n_inputs = len(weight) - bias
    found = student[2].weight.detach().flatten(1).numpy().T  # type: ignore[index,union-attr]
    np.testing.assert_allclose(found, expected[:n_inputs], rtol=1e-5, atol=1e-8)
    if bias:
        np.testing.assert_allclose(student[2].bias.detach().numpy(), expected[-1], rtol=1e-5, atol=1e-8)  # type: ignore[index,union-attr]


@given(st.integers(0, 1000), st.booleans())
@settings(max_examples=8)
def test_a_linear_layer_gets_the_solution_of_numpy_on_its_kept_outputs(seed: int, tokens: bool) -> None:
    layers = nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)
    model = randomize(nn.Sequential(*layers), seed).double().eval()
    size = (30, 3, 4) if tokens else (60, 4)
    x = torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    removed = {"0": [0, 5, 6], "2": [3]}
    plain, student = (pruned(model, (x,), removed, 1e-3, refit) for refit in (False, True))
    kept = [0, 1, 2, 4, 5]
    with torch.no_grad():
        rows = plain[1](plain[0](x)).reshape(-1, 5).numpy()  # type: ignore[index]
        wanted = model[2](model[1](model[0](x))).reshape(-1, 6).numpy()[:, kept]  # type: ignore[index]
    rows = np.hstack([rows, np.ones((len(rows), 1))])
    before = np.vstack([plain[2].weight.detach().numpy().T, plain[2].bias.detach().numpy()])  # type: ignore[index,union-attr]
    expected = by_lstsq(rows, wanted, before, 1e-3)
    np.testing.assert_allclose(student[2].weight.detach().numpy().T, expected[:-1], rtol=1e-6, atol=1e-9)  # type: ignore[index,union-attr]
    # the next layer is fitted to what the refitted one gives, not to what the pruned one gave
    with torch.no_grad():
        rows = student[:4](x).reshape(-1, 5).numpy()  # type: ignore[index]
        wanted = model(x).reshape(-1, 2).numpy()
    rows = np.hstack([rows, np.ones((len(rows), 1))])
    before = np.vstack([plain[4].weight.detach().numpy().T, plain[4].bias.detach().numpy()])  # type: ignore[index,union-attr]
    expected = by_lstsq(rows, wanted, before, 1e-3)
    np.testing.assert_allclose(student[4].weight.detach().numpy().T, expected[:-1], rtol=1e-6, atol=1e-9)  # type: ignore[index,union-attr]


def doubled_channels() -> tuple[DigitsNet, dict[str, list[int]]]:
    """A net whose every block has channels that are twice another: these can go without loss."""
    model = randomize(DigitsNet((8, 8), 1)).eval()
    assert isinstance(model, DigitsNet)
    with torch.no_grad():
        for block in (model.stage1[0], model.stage2[0]):
            block.bn1.running_mean.zero_()
            block.bn1.bias.zero_()
            for channel, twin in ((5, 2), (6, 3)):
                block.conv1.weight[channel] = 2 * block.conv1.weight[twin]
                block.bn1.weight[channel] = block.bn1.weight[twin]
                block.bn1.running_var[channel] = block.bn1.running_var[twin]
    return model, {"stage1.0.conv1": [5, 6], "stage2.0.conv1": [5, 6]}


def test_channels_that_others_hold_can_go_without_loss() -> None:
    model, removed = doubled_channels()
    x = torch.randn(32, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    plain, student = (pruned(model, (x,), removed, 1e-9, refit) for refit in (False, True))
    fresh = torch.randn(8, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    assert (plain(fresh) - model(fresh)).abs().max() > 0.03
    torch.testing.assert_close(student(fresh), model(fresh), rtol=0, atol=1e-4)


@pytest.mark.parametrize("net", sorted(CNNS))
def test_on_any_net_nothing_but_readers_change_and_the_model_is_untouched(net: str) -> None:
    make, size = CNNS[net]
    model, x = randomize(make()).eval(), torch.rand(6, *size)
    graph = inspect_model(model, x)
    before = copy.deepcopy(model.state_dict())
    removed = some_channels(graph, 0.3)
    plain, student = (pruned(model, (x,), removed, 1e-2, refit) for refit in (False, True))
    readers = {path for group in graph.groups for path in group.consumers}
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, plain.state_dict()[name])}
    assert changed and {name.rpartition(".")[0] for name in changed} <= readers
    assert torch.isfinite(student(x)).all()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for module in (*model.modules(), *student.modules()):
        assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize("kind", ["bert", "gpt", "vit", "llama"])
def test_transformers_come_nearer_to_the_model(kind: str) -> None:
    model = randomize(Transformer(kind)).eval()
    ids = torch.randint(0, 20, (64, 7), generator=torch.Generator().manual_seed(0))
    graph = inspect_model(model, ids)
    removed = {name: gone for name, gone in some_channels(graph, 0.3).items() if name != "tokens"}
    plain, student = (pruned(model, (ids,), removed, 1e-3, refit) for refit in (False, True))
    wanted = model(ids)
    assert (student(ids) - wanted).square().mean() < 0.5 * (plain(ids) - wanted).square().mean()


@pytest.mark.parametrize("mode", ["same", "reflect"])
def test_any_padding(mode: str) -> None:
    padding: dict[str, object] = {"padding": "same"} if mode == "same" else {"padding": 1, "padding_mode": mode}
    layers = nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, (2, 3), **padding)  # type: ignore[arg-type]
    model = randomize(nn.Sequential(*layers)).eval()
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, student = (pruned(model, (x,), {"0": [2]}, 1e-6, refit) for refit in (False, True))
    wanted = model(x)
    assert (student(x) - wanted).square().mean() < (plain(x) - wanted).square().mean()


def test_a_choice_of_positions_comes_close_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomize(nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))).eval()
    x = torch.randn(16, 1, 20, 20, generator=torch.Generator().manual_seed(0))

    def error(student: nn.Module) -> Tensor:
        return (student(x) - model(x)).square().mean()

    plain, every = (error(pruned(model, (x,), {"0": [2]}, 1e-6, refit)) for refit in (False, True))
    monkeypatch.setattr(reconstruct_module, "_MIN_ROWS", 600)
    some = error(pruned(model, (x,), {"0": [2]}, 1e-6, True))
    assert every < some < every + 0.2 * (plain - every)


def test_without_calibration_or_with_the_switch_off_nothing_is_refitted() -> None:
    model, removed = doubled_channels()
    x = torch.randn(4, 1, 12, 12)
    graph = inspect_model(model, x)
    candidate = Candidate(prune_ratio=dict.fromkeys(removed, 0.25))
    expected = pruned(model, (x,), dict(resolve(model, graph, candidate).removed), 1.0, False)  # type: ignore[arg-type]
    for student in (
        compress(model, candidate, x, graph=graph),
        compress(model, candidate, x, [x], graph=graph, reconstruct=False),
    ):
        weights = dict(student.named_parameters())
        assert all(torch.equal(weights[name], value) for name, value in expected.named_parameters())


def test_activations_that_are_not_finite_are_named() -> None:
    model, removed = doubled_channels()
    graph, student = inspect_model(model, torch.randn(4, 1, 12, 12)), copy.deepcopy(model)
    remove_channels_(student, graph, removed)
    with pytest.raises(CompressionError, match=r"layer 'stage1.0.conv2' cannot be refitted"):
        reconstruct_(student, model, graph, removed, [(torch.full((4, 1, 12, 12), torch.inf),)])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_accuracy_before_any_training_improves(ratio: float) -> None:
    model, task = trained_model(), tiny_task()
    candidate = Candidate(prune_ratio={"conv1": ratio, "conv2": ratio})
    losses = []
    for reconstruct in (False, True):
        student = compress(model, candidate, task.example_inputs(), task.calibration_batches(), reconstruct=reconstruct)
        difference = [
            (call_model(student, inputs) - call_model(model, inputs)).square().mean()
            for inputs, _ in task.train_batches(0)
        ]
        losses.append(torch.stack(difference).mean().item())
    assert losses[1] < 0.7 * losses[0]


@pytest.mark.parametrize(("ratio", "gain"), [(0.25, 0.0), (0.5, 0.05)])
def test_digits_before_any_training(ratio: float, gain: float) -> None:
    task = DigitsTask()
    model, inputs, calibration = task.build_model(), task.example_inputs(), list(task.calibration_batches())
    graph = inspect_model(model, inputs)
    candidate = Candidate(prune_ratio={group.name: ratio for group in graph.groups})
    figures = []
    for reconstruct in (False, True):
        student = compress(model, candidate, inputs, calibration, graph=graph, reconstruct=reconstruct)
        figures.append(task.evaluate(partial(call_model, student), "selection"))
    plain, refitted = figures
    assert refitted["accuracy"] > plain["accuracy"] + gain
    assert refitted["loss"] < 0.5 * plain["loss"]
