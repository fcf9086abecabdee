"""What the rest of the program takes from a task: models and inputs in one form, on the CPU wherever the task is."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from autocompress.devices import CPU, full_precision, on_device, widened
from autocompress.task import Inputs, Task, as_inputs


def model_of(task: Task) -> nn.Module:
    """A fresh copy of the trained model, in evaluation mode, on the CPU; one in half precision is widened to float32.

    So its weights are kept to the last bit, fine-tunes have a full-precision copy to train, and CPU runtimes, which
    have few half-precision kernels, get what they can run.
    """
    return widened(task.build_model().cpu().eval())


def examples_of(task: Task) -> Inputs:
    """The inputs that are timed, on the CPU."""
    return full_precision(as_inputs(on_device(task.example_inputs(), CPU)))


def calibration_of(task: Task) -> Iterator[Inputs]:
    """The calibration batches, on the CPU."""
    return (full_precision(as_inputs(on_device(inputs, CPU))) for inputs in task.calibration_batches())
