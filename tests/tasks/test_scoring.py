"""Metrics by name against plain numpy or counting by hand, and their directions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.tasks.scoring import METRICS, metric_named


def two_classes(seed: int, n: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 2, (n,), generator=generator)
    outputs = torch.randn(n, 2, generator=generator) + torch.nn.functional.one_hot(targets, 2)
    return outputs, targets


@pytest.mark.parametrize("seed", range(3))
def test_auc_is_the_share_of_pairs_in_order(seed: int) -> None:
    outputs, targets = two_classes(seed)
    scores = (outputs[:, 1] - outputs[:, 0]).numpy()
    pairs = list(itertools.product(scores[targets == 1], scores[targets == 0]))
    assert metric_named("auc").compute(outputs, targets) == pytest.approx(np.mean([a > b for a, b in pairs]))


@pytest.mark.parametrize("seed", range(3))
def test_the_equal_error_rate_lies_where_the_errors_cross(seed: int) -> None:
    outputs, targets = two_classes(seed, 4_000)
    scores = (outputs[:, 1] - outputs[:, 0]).numpy()
    positive, negative = scores[targets == 1], scores[targets == 0]
    gaps = [(abs((negative >= t).mean() - (positive < t).mean()), (positive < t).mean()) for t in scores]
    assert metric_named("equal_error_rate").compute(outputs, targets) == pytest.approx(min(gaps)[1], abs=2e-3)


def test_f1_and_the_worst_class_by_counting() -> None:
    outputs = torch.eye(3)[[0, 0, 1, 2, 2, 1]]
    targets = torch.tensor([0, 1, 1, 2, 2, 2])
    assert metric_named("f1").compute(outputs, targets) == pytest.approx(np.mean([2 / 3, 1 / 2, 4 / 5]))
    assert metric_named("worst_class_accuracy").compute(outputs, targets) == pytest.approx(0.5)
    assert metric_named("accuracy").compute(outputs, targets) == pytest.approx(4 / 6)


def test_log_loss_and_perplexity_by_their_formulas() -> None:
    outputs, targets = two_classes(0)
    chosen = outputs.double().softmax(-1).numpy()[np.arange(60), targets.numpy()]
    assert metric_named("log_loss").compute(outputs, targets) == pytest.approx(-np.log(chosen).mean())
    masked = targets.clone()
    masked[:30] = -100
    expected = np.exp(-np.log(chosen[30:]).mean())
    assert metric_named("perplexity").compute(outputs, masked) == pytest.approx(expected, rel=1e-5)


def test_ranks_of_values() -> None:
    outputs, targets = torch.tensor([[0.1], [0.4], [0.2], [0.9]]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    ranks, others = np.array([1, 3, 2, 4]), np.array([1, 2, 3, 4])
    assert metric_named("spearman").compute(outputs, targets) == pytest.approx(np.corrcoef(ranks, others)[0, 1])
    assert metric_named("rmse").compute(outputs, targets) == pytest.approx(
        np.sqrt(np.mean((outputs.numpy().ravel() - targets.numpy()) ** 2))
    )


def test_recall_and_ndcg_by_hand() -> None:
    outputs = torch.tensor([[0.9, 0.8, 0.1, 0.2], [0.1, 0.2, 0.3, 0.4]])
    targets = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]])
    assert metric_named("recall@2").compute(outputs, targets) == pytest.approx((0.5 + 1.0) / 2)
    gain = [1 / (1 + 1 / np.log2(3)), 1.0]
    assert metric_named("ndcg@2").compute(outputs, targets) == pytest.approx(np.mean(gain))


def test_mean_iou_by_counting() -> None:
    outputs = torch.zeros(1, 2, 2, 2)
    outputs[0, 1, 0] = 1.0  # the upper row is class 1
    targets = torch.tensor([[[1, 0], [0, 0]]])
    assert metric_named("mean_iou").compute(outputs, targets) == pytest.approx(np.mean([1 / 2, 2 / 3]))


def test_names_have_directions_and_others_are_functions() -> None:
    assert {name for name, (_, direction) in METRICS.items() if direction == "minimize"} == {
        "log_loss",
        "rmse",
        "equal_error_rate",
        "perplexity",
    }
    own = metric_named("autocompress.metrics:accuracy")
    assert (own.name, own.direction) == ("accuracy", "maximize")
    with pytest.raises(InputError, match="one of accuracy, .*but got 'precision'"):
        metric_named("precision")
