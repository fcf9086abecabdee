"""Rounding that training does not see at first: the float model's own values, and the file's in evaluation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autocompress.compression import compress, delay_rounding_
from autocompress.compression.quantize.activations import ActivationQuantizer, BFloat16Activations
from autocompress.config import DistillSettings
from autocompress.distillation.fine_tune import FastMode, FineTune, Teacher
from autocompress.space.candidate import Candidate, Precision
from tests.shared.tasks import batches, images, tiny_task, trained_model


def student_of(bits: Precision) -> nn.Module:
    calibration = [inputs for inputs, _ in batches(64, 4)]
    candidate = Candidate(weight_bits={"conv1": bits, "conv2": bits, "fc": bits})
    return compress(trained_model(), candidate, (images(1, 0)[0],), calibration)


@pytest.mark.parametrize("bits", [8, 16, "8w"])
def test_training_sees_the_float_model_and_evaluation_the_rounded_one(bits: Precision) -> None:
    student, (x, _) = student_of(bits), images(16, 1)
    rounded = copy.deepcopy(student)(x)
    delay_rounding_(student, True)
    assert torch.equal(student(x), rounded)
    plain = trained_model().train()
    # biases lie on the grid of the integer sums already
    torch.testing.assert_close(student.train()(x), plain(x), rtol=1e-3, atol=1e-3)
    delay_rounding_(student, False)
    assert not torch.allclose(student(x), plain(x), rtol=1e-3, atol=1e-3)


def test_few_bits_are_seen_from_the_beginning() -> None:
    student, (x, _) = student_of("4w"), images(16, 1)
    before = copy.deepcopy(student).train()(x)
    delay_rounding_(student, True)
    assert torch.equal(student.train()(x), before)


def test_ranges_follow_where_they_observe() -> None:
    student, (x, _) = student_of(8), images(16, 1)
    quantizer = next(module for module in student.modules() if isinstance(module, ActivationQuantizer))
    student.train()
    high = quantizer.high.clone()
    delay_rounding_(student, True, observes=False)
    student(50 * x)
    assert torch.equal(quantizer.high, high)
    delay_rounding_(student, True, observes=True)
    student(50 * x)
    assert quantizer.high > high


def test_a_fine_tune_sees_the_rounding_in_its_last_part_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(settings: DistillSettings, student: nn.Module) -> list[bool]:
        rounding: list[bool] = []
        train_one = FineTune._train_one

        def noted(self: FineTune, batch: object) -> None:
            kinds = ActivationQuantizer | BFloat16Activations
            states = {module.through for module in self.student.modules() if isinstance(module, kinds)}
            (through,) = states
            rounding.append(not through)
            train_one(self, batch)  # type: ignore[arg-type]

        monkeypatch.setattr(FineTune, "_train_one", noted)
        FineTune(student, Teacher(trained_model(), FastMode(False)), tiny_task(), settings).advance(10)
        monkeypatch.setattr(FineTune, "_train_one", train_one)
        return rounding

    late = seen(DistillSettings(rungs=(0, 10), round_from=0.7), student_of(8))
    assert late == [False] * 7 + [True] * 3
    assert all(seen(DistillSettings(rungs=(0, 10), round_from=0.0), student_of(8)))
    assert all(seen(DistillSettings(rungs=(0, 10), learn_scales=True), student_of(8)))
