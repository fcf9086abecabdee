"""Zeroed weights: the right ones, exactly zero through fine-tune, save and export; and what an encoding saves."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn

from autocompress.compression import RebuildOptions, compress, rebuild, resolve, sparse_saving_bytes
from autocompress.compression.sparsify import magnitude_mask, weight_layers
from autocompress.config import DistillSettings
from autocompress.distillation.fine_tune import FineTune, Teacher, distill
from autocompress.errors import CompressionError
from autocompress.graph import ModelGraph, inspect_model
from autocompress.publishing.artifact import load_student, save_student
from autocompress.runtimes import export
from autocompress.space.candidate import Candidate
from tests.shared.tasks import images, tiny_task, trained_model

INPUTS = (images(1, 0)[0],)
CALIBRATION = [(images(32, 9)[0],)]
SPARSE = Candidate(
    prune_ratio={"conv1": 0.25},
    rank_ratio={"fc": 1.0},
    weight_bits={"conv2": 8},
    sparsity={"conv1": 0.6, "conv2": "2:4", "fc": 0.5},
)
shapes = st.one_of(
    st.tuples(st.integers(1, 6), st.integers(1, 13)),
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)),
)


def random_weight(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained_model()


@pytest.fixture(scope="module")
def graph(model: nn.Module) -> ModelGraph:
    return inspect_model(model, INPUTS)


@given(shapes, st.floats(0, 0.99), st.integers(0, 1000))
def test_a_share_zeroes_the_smallest_entries(shape: tuple[int, ...], share: float, seed: int) -> None:
    weight = random_weight(shape, seed)
    magnitudes = np.sort(np.abs(weight.numpy()).ravel())
    n_zeros = round(share * weight.numel())
    threshold = magnitudes[n_zeros] if n_zeros < len(magnitudes) else math.inf
    assert np.array_equal(magnitude_mask(weight, share).numpy(), np.abs(weight.numpy()) >= threshold)


@given(shapes, st.sampled_from([(2, 4), (1, 4), (3, 5), (1, 2)]), st.integers(0, 1000))
def test_blocks_keep_their_largest_along_the_inputs(shape: tuple[int, ...], block: tuple[int, int], seed: int) -> None:
    n_kept, size = block
    weight = random_weight(shape, seed).numpy()
    mask = magnitude_mask(torch.from_numpy(weight), f"{n_kept}:{size}").numpy()
    expected = np.zeros(shape, dtype=bool)
    for index in np.ndindex(shape[0], *shape[2:]):
        line = (index[0], slice(None), *index[1:])
        for start in range(0, shape[1], size):
            entries = np.abs(weight[line][start : start + size])
            expected[line][start + np.argsort(-entries, kind="stable")[:n_kept]] = True
    assert np.array_equal(mask, expected)


def test_of_equal_entries_the_first_stay() -> None:
    assert magnitude_mask(torch.ones(2, 4), 0.5).tolist() == [[True] * 4, [False] * 4]
    assert magnitude_mask(torch.zeros(1, 8), "2:4").tolist() == [[True, True, False, False] * 2]


def zeros_of(student: nn.Module) -> dict[str, Tensor]:
    return {
        f"{path}.{number}": layer.weight.detach() == 0
        for path in SPARSE.sparsity
        for number, layer in enumerate(weight_layers(student, path))
    }


def check_levels(zeros: dict[str, Tensor]) -> None:
    assert zeros["conv1.0"].double().mean() == pytest.approx(0.6, abs=0.5 / zeros["conv1.0"].numel())
    kept = (~zeros["conv2.0"]).movedim(1, -1).unflatten(-1, (-1, 4)).sum(-1)
    assert (kept == 2).all(), "12 inputs in three blocks of four"
    assert {name for name in zeros if name.startswith("fc")} == {"fc.0"}  # the rank does not pay: it stays one layer


def test_zeros_survive_the_fine_tune_and_no_mask_is_attached(model: nn.Module, graph: ModelGraph) -> None:
    student = compress(model, SPARSE, INPUTS, CALIBRATION, graph=graph)
    before, weights = zeros_of(student), copy.deepcopy(student.state_dict())
    check_levels(before)
    distill(student, model, tiny_task(), steps=6, settings=DistillSettings(learning_rate=0.05))
    after = zeros_of(student)
    assert all(torch.equal(before[name], after[name]) for name in before)
    trained = student.get_submodule("conv1").weight
    assert (trained != weights["conv1.weight"]).double().mean() > 0.3, "the others are trained"  # type: ignore[operator,union-attr]
    assert type(student) is type(model) and type(student.get_submodule("conv1")) is nn.Conv2d
    dense = compress(model, Candidate(prune_ratio={"conv1": 0.25}, weight_bits={"conv2": 8}), INPUTS, CALIBRATION)
    assert list(student.state_dict()) == list(dense.state_dict())
    twin = copy.deepcopy(student)
    assert torch.equal(twin(*INPUTS), student(*INPUTS))


def test_both_factors_of_a_split_layer_have_zeros(model: nn.Module, graph: ModelGraph) -> None:
    candidate = Candidate(rank_ratio={"conv2": 0.5}, sparsity={"conv2": 0.5})
    student = compress(model, candidate, INPUTS, CALIBRATION, graph=graph)
    layers = list(weight_layers(student, "conv2"))
    assert [(layer.weight == 0).double().mean().item() for layer in layers] == [0.5, 0.5]


def test_zeros_of_a_layer_that_was_not_made_sparse_are_trained(model: nn.Module, graph: ModelGraph) -> None:
    student = compress(model, Candidate(sparsity={"conv1": 0.5}), INPUTS, CALIBRATION, graph=graph)
    fc = student.get_submodule("fc")
    with torch.no_grad():
        fc.weight.zero_()  # type: ignore[operator,union-attr]
    before = student.get_submodule("conv1").weight.detach() == 0  # type: ignore[union-attr,operator]
    distill(copied := copy.deepcopy(student), model, tiny_task(), steps=3, settings=DistillSettings(learning_rate=0.05))
    assert (copied.get_submodule("fc").weight != 0).all()  # type: ignore[union-attr,operator]
    assert torch.equal(copied.get_submodule("conv1").weight == 0, before)  # type: ignore[arg-type]


def test_saved_weights_and_recipe_give_the_student_back(model: nn.Module, graph: ModelGraph, tmp_path: Path) -> None:
    recipe = resolve(model, graph, SPARSE)
    student = rebuild(model, graph, recipe, CALIBRATION, RebuildOptions(reconstruct=True))
    distill(student, model, tiny_task(), steps=3)
    save_student(tmp_path, student, recipe)
    again, replayed = load_student(tmp_path, model, graph)
    assert replayed == recipe and replayed.sparsity == {"conv1": 0.6, "conv2": "2:4", "fc": 0.5}
    assert torch.equal(again(*INPUTS), student(*INPUTS))
    check_levels(zeros_of(again))


def test_a_resumed_fine_tune_keeps_the_zeros_of_its_state(model: nn.Module, graph: ModelGraph) -> None:
    recipe, task = resolve(model, graph, SPARSE), tiny_task()
    settings = DistillSettings(rungs=(0, 2, 4), learning_rate=0.05)
    student = rebuild(model, graph, recipe, CALIBRATION, RebuildOptions(reconstruct=True))
    first = FineTune(student, Teacher(model), task, settings)
    first.advance(2)
    other = rebuild(model, graph, recipe)  # without the refits other entries were the smallest
    wanted = zeros_of(student)
    assert not all(torch.equal(mask, zeros_of(other)[name]) for name, mask in wanted.items())
    second = FineTune(other, Teacher(model), task, settings)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.advance(4)
    assert all(torch.equal(mask, zeros_of(other)[name]) for name, mask in wanted.items())


def test_zeros_are_in_the_exported_file(model: nn.Module, graph: ModelGraph, tmp_path: Path) -> None:
    student = compress(model, SPARSE, INPUTS, CALIBRATION, graph=graph)
    file = export(student, INPUTS, tmp_path, runtime="onnxruntime")
    arrays = [numpy_helper.to_array(item) for item in onnx.load(file).graph.initializer]
    for name, mask in zeros_of(student).items():
        same = [array for array in arrays if array.shape == tuple(mask.shape)]
        assert len(same) == 1, name
        assert (same[0][mask.numpy()] == 0).all()


def encoded(weight: np.ndarray) -> bytes:
    """One bit per entry, then the entries that are not zero."""
    return np.packbits(weight.ravel() != 0).tobytes() + weight[weight != 0].tobytes()


def decoded(data: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:  # type: ignore[type-arg]
    n_bits = math.ceil(math.prod(shape) / 8)
    mask = np.unpackbits(np.frombuffer(data[:n_bits], np.uint8))[: math.prod(shape)].astype(bool)
    values = np.zeros(math.prod(shape), dtype)
    values[mask] = np.frombuffer(data[n_bits:], dtype)
    return values.reshape(shape)


@given(shapes, st.floats(0, 0.99), st.integers(0, 1000))
def test_the_saving_is_that_of_a_real_encoding(shape: tuple[int, ...], share: float, seed: int) -> None:
    weight = random_weight(shape, seed)
    layer = nn.Linear(1, 1)
    layer.weight = nn.Parameter(weight * magnitude_mask(weight, share))
    array = layer.weight.detach().numpy()
    data = encoded(array)
    assert np.array_equal(decoded(data, shape, array.dtype), array)
    assert sparse_saving_bytes(nn.ModuleDict({"a": layer}), ["a"]) == max(0, array.nbytes - len(data))


def test_eight_bit_weights_save_a_byte_for_each_zero(model: nn.Module, graph: ModelGraph) -> None:
    student = compress(model, Candidate(weight_bits={"conv2": 8}, sparsity={"conv2": 0.5}), INPUTS, CALIBRATION)
    n_weights = 16 * 16 * 9
    assert sparse_saving_bytes(student, ["conv2"]) == n_weights // 2 - n_weights // 8


def test_layers_of_another_kind_are_refused(model: nn.Module) -> None:
    with pytest.raises(CompressionError, match="conv2d layers, but 'bn1' is a BatchNorm2d"):
        list(weight_layers(model, "bn1"))
