"""Features of a narrower student are compared through a map that fits, trains and is saved with it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.compression import compress
from autocompress.config import DistillSettings
from autocompress.distillation.feature_loss import FeatureLoss
from autocompress.distillation.fine_tune import FastMode, FineTune, Teacher
from autocompress.errors import InputError
from autocompress.space.candidate import Candidate
from autocompress.task import call_model
from autocompress.tasks.digits import DigitsNet
from tests.shared.tasks import batches, images, tiny_task, trained_model

X = (torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(1)),)


def loss_of(features: FeatureLoss, student: nn.Module, teacher: nn.Module) -> float:
    with torch.no_grad(), features.watch() as (ours, theirs):
        call_model(student, X)
        call_model(teacher, X)
        return float(features(ours, theirs))


def test_the_adapter_starts_as_the_least_squares_fit() -> None:
    torch.manual_seed(0)
    teacher, student = DigitsNet().eval(), DigitsNet().eval()
    narrow = compress(student, Candidate(prune_ratio={"stage1.0.conv1": 0.5}), X)
    path = "stage1.0.conv1"
    features = FeatureLoss(narrow, teacher, [path], X)
    (adapter,) = features.adapters
    assert isinstance(adapter, nn.Linear) and adapter.in_features < adapter.out_features
    with torch.no_grad(), features.watch() as (ours, theirs):
        narrow(*X)
        teacher(*X)
    a, b = (value[path].movedim(1, -1).flatten(0, -2).double().numpy() for value in (ours, theirs))
    design = np.concatenate([a, np.ones((len(a), 1))], 1)
    expected = design @ np.linalg.lstsq(design, b, rcond=None)[0]
    error = ((expected - b) ** 2).mean() / (b**2).mean()
    assert error <= loss_of(features, narrow, teacher) <= error * 1.01 + 1e-6


def test_equal_widths_are_compared_as_they_are() -> None:
    torch.manual_seed(0)
    teacher, student = DigitsNet().eval(), DigitsNet().eval()
    features = FeatureLoss(student, teacher, ["stage1.0", "linear"], X)
    assert [type(adapter) for adapter in features.adapters] == [nn.Identity, nn.Identity]
    same = FeatureLoss(teacher, teacher, ["stage1.0"], X)
    assert loss_of(same, teacher, teacher) == 0.0
    seen = []
    for model in (student, teacher):
        handle = model.get_submodule("linear").register_forward_hook(lambda _m, _i, output: seen.append(output))
        with torch.no_grad():
            model(*X)
        handle.remove()
    expected = float((seen[0] - seen[1]).square().mean() / seen[1].square().mean())
    assert loss_of(FeatureLoss(student, teacher, ["linear"], X), student, teacher) == pytest.approx(expected, rel=1e-5)


def test_a_layer_that_was_dropped_is_left_out() -> None:
    torch.manual_seed(0)
    teacher = DigitsNet().eval()
    student = compress(teacher, Candidate(drop=frozenset({"stage1.1"})), X)
    features = FeatureLoss(student, teacher, ["stage1.1.conv1"], X)
    assert len(features.adapters) == 0 and loss_of(features, student, teacher) == 0.0


def test_features_of_other_sizes() -> None:
    with pytest.raises(InputError, match="must have the teacher's shape but for one width"):
        FeatureLoss(nn.Sequential(nn.Conv2d(1, 2, 3)), nn.Sequential(nn.Conv2d(1, 3, 5)), ["0"], X)


def test_adapters_train_and_continue_exactly() -> None:
    """The adapter is part of the saved state, and a student trained under features comes nearer to them."""
    settings = DistillSettings(rungs=(0, 6, 12), feature_weight=1.0, feature_layers=("conv1",), learning_rate=0.02)

    def tune() -> FineTune:
        candidate = Candidate(prune_ratio={"conv1": 0.5})
        student = compress(trained_model(), candidate, (images(1, 0)[0],), [i for i, _ in batches(64, 4)])
        return FineTune(student, Teacher(trained_model(), FastMode(False)), tiny_task(), settings)

    whole, first, second = tune(), tune(), tune()
    whole.advance(12)
    first.advance(6)
    state = copy.deepcopy(first.state_dict())
    assert state["adapters"], "its width was pruned"
    second.load_state_dict(state)
    second.advance(12)
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(tensor, second.student.state_dict()[name]), name
    for name, tensor in whole.state_dict()["adapters"].items():
        assert torch.equal(tensor, second.state_dict()["adapters"][name])
        assert not torch.equal(tensor, state["adapters"][name]), "it trains"
