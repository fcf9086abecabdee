"""Memory of a fine-tune: what a teacher keeps is bounded, and a step that does not fit is done in halves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.config import DistillSettings, SearchSettings
from autocompress.devices import CPU, PeakMemory
from autocompress.distillation.fine_tune import FineTune, Teacher
from autocompress.distillation.precision import FastMode, mode_of
from autocompress.errors import CompressionError, InputError
from autocompress.execution.device_check import check_device, check_share
from autocompress.space.candidate import Candidate
from autocompress.task import SupervisedTask
from tests.second_device.backend import register
from tests.shared.tasks import batches, images, tiny_task, trained_model

SETTINGS = DistillSettings(rungs=(0, 6), learning_rate=0.05)
register()  # before the first backward pass of this process, which counts the devices
PLAIN = FastMode(False)


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.n_calls = nn.Linear(64, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        return self.inner(x.flatten(1))


# --- kept outputs


@pytest.mark.parametrize(("kept_bytes", "n_calls"), [(10**6, 4), (2 * 32 * 4 * 4, 4 + 2), (32 * 4 * 4 - 1, 8), (0, 8)])
def test_the_teacher_keeps_outputs_up_to_a_limit(kept_bytes: int, n_calls: int) -> None:
    model = Counting()
    teacher = Teacher(model, PLAIN, kept_bytes)
    stream = [inputs for inputs, _ in batches(128, 1)]
    first = [teacher.outputs(i, inputs) for i, inputs in enumerate(stream)]
    again = [teacher.outputs(i, inputs) for i, inputs in enumerate(stream)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert model.n_calls == n_calls


def test_outputs_of_other_inputs_take_the_place_of_the_former() -> None:
    model = Counting()
    teacher = Teacher(model, PLAIN, 32 * 4 * 4)
    (one, _), (other, _) = batches(64, 1)
    for inputs in (one, other, other, one, one):
        torch.testing.assert_close(teacher.outputs(0, inputs), model.inner(inputs[0].flatten(1)))
    assert model.n_calls == 3


def test_a_teacher_on_an_accelerator_keeps_nothing() -> None:
    device = torch.device("second")
    model = Counting().to(device)
    teacher = Teacher(model, mode_of(device, False))
    inputs = (images(4, 0)[0].to(device),)
    teacher.outputs(0, inputs), teacher.outputs(0, inputs)
    assert model.n_calls == 2


# --- steps that do not fit


def out_of_memory_beyond(limit: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        if module.training and len(args[0]) > limit:
            raise torch.OutOfMemoryError(f"tried to allocate {len(args[0])} GiB")

    return hook


def fine_tune_of(limit: int, model: nn.Module, size: int = 32) -> FineTune:
    student = compress(model, Candidate(), images(1, 0)[0])
    student.register_forward_pre_hook(out_of_memory_beyond(limit))
    parts = batches(128, 1, size)
    task = SupervisedTask(model, parts, parts, parts)
    return FineTune(student, Teacher(model, PLAIN), task, SETTINGS)


class Plain(nn.Sequential):
    """No batch norm, so that halves give the very gradients of the whole."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize("size", [32, 17])
def test_halves_add_up_to_the_whole_step(size: int) -> None:
    model = Plain().eval()
    parts = batches(128, 1, 32)
    if size == 17:  # a batch that cannot be cut into equal halves
        parts = [((inputs[0][:17],), targets[:17]) for inputs, targets in parts]
    task = SupervisedTask(model, parts, parts, parts)
    made = []
    for limit in (1000, size - 1):
        student = compress(model, Candidate(), images(1, 0)[0])
        student.register_forward_pre_hook(out_of_memory_beyond(limit))
        fine_tune = FineTune(student, Teacher(model, PLAIN), task, SETTINGS)
        fine_tune.advance(6)
        made.append(fine_tune)
    whole, halves = made
    assert (whole._n_parts, halves._n_parts) == (1, 2)
    for one, other in zip(whole.student.parameters(), halves.student.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_in_halves_fails_with_the_reason() -> None:
    fine_tune = fine_tune_of(15, Plain().eval())
    with pytest.raises(CompressionError, match=r"a batch of 32 does not, even in two halves; .*gpus_per_trial"):
        fine_tune.advance(1)
    with pytest.raises(CompressionError, match=r"a batch of 1 does not, and cannot be halved"):
        fine_tune_of(0, Plain().eval(), 1).advance(1)


def test_a_batch_norm_trains_in_halves_too() -> None:
    fine_tune = fine_tune_of(20, trained_model())
    fine_tune.advance(6)
    assert fine_tune._n_parts == 2 and fine_tune.step == 6


def test_losses_are_looked_at_in_the_end_on_an_accelerator() -> None:
    device = torch.device("second")
    model = Plain().to(device)
    student = Plain().to(device)
    with torch.no_grad():
        student[1].weight.fill_(float("nan"))
    fine_tune = FineTune(student, Teacher(model, mode_of(device, False)), tiny_task(trained_model()), SETTINGS)
    with pytest.raises(CompressionError, match="loss must be finite, but is nan after 2 steps"):
        fine_tune.advance(2)


def test_a_compiled_student_trains_as_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: plain(module, backend="eager"))
    made = []
    for compiled in (False, True):
        model = Plain().eval()
        student = compress(model, Candidate(), images(1, 0)[0])
        settings = DistillSettings(rungs=(0, 3), learning_rate=0.05, compile=compiled)
        FineTune(student, Teacher(model, PLAIN), tiny_task(trained_model()), settings).advance(3)
        made.append(student)
    for one, other in zip(made[0].parameters(), made[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


# --- before a search


def test_a_device_whose_memory_is_too_small_is_known_before() -> None:

    class Greedy(Plain):
        def forward(self, x: Tensor) -> Tensor:
            if x.device.type == "second":
                raise torch.OutOfMemoryError("tried to allocate 80 GiB")
            return super().forward(x)

    settings = SearchSettings(device="second")
    check_device(tiny_task(), Greedy().eval(), settings, CPU)  # nothing is tried there
    with pytest.raises(InputError, match="one training step of the uncompressed model must work on second"):
        check_device(tiny_task(), Greedy().eval(), settings, torch.device("second"))
    check_device(tiny_task(), trained_model(), settings, torch.device("second"))


def test_a_loss_that_stays_on_the_cpu_is_known_before() -> None:
    weights = torch.ones(4)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, weight=weights)

    parts = batches(64, 1)
    task = SupervisedTask(trained_model(), parts, parts, parts, loss=loss)
    with pytest.raises(InputError, match=r"the task's loss must work on second.*outputs.device"):
        check_device(task, trained_model(), SearchSettings(device="second"), torch.device("second"))


def test_a_share_of_a_gpu_must_hold_a_step() -> None:
    check_share(900, 4000, 0.25)
    with pytest.raises(InputError, match=r"needs 1500 MiB, but a trial's share \(0.25\).*set gpus_per_trial to 0.38"):
        check_share(1500, 4000, 0.25)
    with pytest.raises(InputError, match="give smaller training batches"):
        check_share(9000, 4000, 1.0)


def test_the_peak_of_this_process_is_seen_and_forgotten() -> None:
    memory = PeakMemory(CPU)
    if memory.mib is None:
        pytest.skip("this system does not tell")
    before = memory.mib
    block = torch.ones(2**24)  # 64 MiB
    assert memory.mib > before + 50
    del block
    assert PeakMemory(CPU).mib < before + 50  # type: ignore[operator]
