"""Penalties against loops in numpy; what they do to a model in a fine-tune."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.compression import GroupLasso, l1_penalty
from autocompress.config import DistillSettings
from autocompress.distillation.fine_tune import distill
from autocompress.errors import InputError
from autocompress.graph import ModelGraph, inspect_model
from tests.shared.tasks import images, tiny_task, trained_model

INPUTS = (images(1, 0)[0],)


def entries_by_channel(model: nn.Module, graph: ModelGraph) -> list[np.ndarray]:
    """All entries of parameters that go with each channel, taken one by one."""
    parameters = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    found = []
    for group in graph.groups:
        for channel in range(group.n_channels):
            parts = [
                np.take(parameters[coupling.tensor], coupling.slots[channel], axis=coupling.dim).ravel()
                for coupling in group.couplings
                if coupling.tensor in parameters
            ]
            found.append(np.concatenate(parts))
    return found


def test_the_group_lasso_is_the_sum_over_channels_of_their_norms() -> None:
    model = trained_model()
    graph = inspect_model(model, INPUTS)
    channels = entries_by_channel(model, graph)
    expected = sum(math.sqrt(len(w)) * np.linalg.norm(w) for w in channels) / sum(map(len, channels))
    assert GroupLasso(model, graph)().item() == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(-0.25)
    assert GroupLasso(model, graph)().item() == pytest.approx(0.25, rel=1e-5)
    assert l1_penalty(model).item() == pytest.approx(0.25, rel=1e-5)


def test_l1_is_the_mean_magnitude_of_weights() -> None:
    model = trained_model()
    weights = [p.detach().double().numpy() for p in model.parameters() if p.ndim > 1]
    expected = sum(np.abs(w).sum() for w in weights) / sum(w.size for w in weights)
    assert l1_penalty(model).item() == pytest.approx(expected, rel=1e-5)


def test_a_channel_of_zeros_has_a_finite_gradient() -> None:
    model = trained_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    GroupLasso(model, inspect_model(model, INPUTS))().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["l1_weight", "group_lasso_weight"])
def test_a_fine_tune_with_a_penalty_makes_it_smaller_than_one_without(name: str) -> None:
    model, task = trained_model(), tiny_task()
    graph = inspect_model(model, INPUTS)
    values = {}
    for weight in (0.0, 30.0):
        settings = DistillSettings(learning_rate=0.02, weight_decay=0.0, **{name: weight})
        student = distill(copy.deepcopy(model), model, task, steps=20, settings=settings)
        values[weight] = l1_penalty(student).item() if name == "l1_weight" else GroupLasso(student, graph)().item()
    assert values[30.0] < 0.95 * values[0.0]


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match="l1_weight >= 0"):
        DistillSettings(l1_weight=-1.0)
