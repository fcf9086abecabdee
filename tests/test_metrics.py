"""Accuracy, cross entropy and the teacher's lesson, by loops over single targets, for every place of the classes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autocompress.distillation.fine_tune import teaching_loss
from autocompress.errors import InputError
from autocompress.metrics import accuracy, class_dim, cross_entropy

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


def example(shape: tuple[int, ...], n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (*shape, n_classes) and class indices of that shape."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*shape, n_classes)), rng.integers(0, n_classes, size=shape)


def as_given(scores: np.ndarray, classes_last: bool) -> Tensor:
    return torch.tensor(scores if classes_last else np.moveaxis(scores, -1, 1))


@given(shape=shapes, classes_last=st.booleans(), seed=st.integers(0, 99))
def test_each_target_counts_once_wherever_the_classes_are(
    shape: tuple[int, ...], classes_last: bool, seed: int
) -> None:
    scores, targets = example(shape, 5, seed)
    hits, losses = [], []
    for place in itertools.product(*map(range, shape)):
        row = scores[place].tolist()
        hits.append(row.index(max(row)) == targets[place])
        losses.append(math.log(sum(math.exp(score) for score in row)) - row[targets[place]])
    outputs, indices = as_given(scores, classes_last), torch.tensor(targets)
    assert accuracy(outputs, indices) == pytest.approx(sum(hits) / len(hits))
    assert float(cross_entropy(outputs, indices)) == pytest.approx(sum(losses) / len(losses), rel=1e-9)


@given(shape=shapes, classes_last=st.booleans(), seed=st.integers(0, 99))
def test_soft_targets_are_over_the_classes_in_any_dimension(
    shape: tuple[int, ...], classes_last: bool, seed: int
) -> None:
    ours, targets = example(shape, 5, seed)
    theirs, _ = example(shape, 5, seed + 1)

    def shares(scores: np.ndarray) -> np.ndarray:
        powers = np.exp(scores / 2.0)
        return powers / powers.sum(-1, keepdims=True)

    p, q = shares(theirs), shares(ours)
    expected = 4.0 * (p * np.log(p / q)).sum(-1).mean()
    outputs, soft = as_given(ours, classes_last), as_given(theirs, classes_last)
    assert float(teaching_loss(outputs, soft, 2.0, torch.tensor(targets))) == pytest.approx(expected, rel=1e-9)


def test_probabilities_are_targets_too() -> None:
    scores, _ = example((3, 2), 4, 0)
    shares = torch.tensor(example((3, 2), 4, 1)[0]).softmax(-1)
    expected = -(shares * torch.tensor(scores).log_softmax(-1)).sum(-1).mean()
    assert class_dim(torch.tensor(scores), shares) == -1
    assert float(cross_entropy(torch.tensor(scores), shares)) == pytest.approx(float(expected))
    outputs, targets = torch.tensor(scores).movedim(-1, 1), shares.movedim(-1, 1)
    assert class_dim(outputs, targets) == 1
    assert float(cross_entropy(outputs, targets)) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.randn(6, 1), torch.randn(6, 1)),  # regression
        (torch.randn(6), torch.randn(6)),
        (torch.randn(6, 3), torch.randn(6, 3)),
        (torch.randn(6, 1), torch.randint(0, 2, (6,))),  # one score for yes or no
        (torch.randn(6, 3), torch.tensor([[1.0, 1.0, 0.0]] * 6)),  # labels that do not exclude each other
    ],
    ids=["column", "numbers", "several", "yes or no", "labels"],
)
def test_outputs_that_are_no_classes_are_distilled_by_value(outputs: Tensor, targets: Tensor) -> None:
    assert class_dim(outputs, targets) is None
    soft = torch.randn_like(outputs)
    expected = np.square(outputs.numpy() - soft.numpy()).mean()
    assert float(teaching_loss(outputs, soft, 4.0, targets)) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(InputError, match="accuracy needs outputs .* give `metric` a function"):
        accuracy(outputs, targets)


def test_targets_that_only_the_tasks_loss_understands_have_classes_last() -> None:
    assert class_dim(torch.randn(2, 7, 5), {"labels": torch.zeros(2)}) == -1


def test_accuracy_refuses_targets_of_another_shape() -> None:
    with pytest.raises(InputError, match=r"outputs \(4, 3\) and targets \(5,\)"):
        accuracy(torch.randn(4, 3), torch.zeros(5, dtype=torch.int64))
