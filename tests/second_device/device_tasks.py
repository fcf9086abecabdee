"""The tiny task for searches on the second device, which each process that reads it registers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from autocompress.devices import on_device
from autocompress.task import Batch, Inputs, SupervisedTask
from tests.second_device.backend import register
from tests.shared.tasks import batches, trained_model


def _with_device(state: dict[str, Any]) -> DeviceTask:
    register()
    task = DeviceTask()
    task.__dict__.update(state)
    return task


class DeviceTask(SupervisedTask):
    """Builds and gives everything on the CPU, as most tasks do."""

    def __init__(self) -> None:
        register()
        parts = (batches(128, 1), batches(192, 2, 64), batches(192, 3, 64))
        super().__init__(trained_model(), *parts, calibration=[inputs for inputs, _ in batches(64, 4)], name="tiny")

    def __reduce__(self) -> Any:
        return _with_device, (self.__dict__,)


class MovingTask(DeviceTask):
    """Moves its model and all of its batches by itself, and judges there."""

    def __init__(self, device: str = "second") -> None:
        super().__init__()
        self._device = device

    def __reduce__(self) -> Any:
        return MovingTask, (self._device,)

    def build_model(self) -> nn.Module:
        return super().build_model().to(self._device)

    def example_inputs(self) -> Inputs:
        return self._moved(super().example_inputs())  # type: ignore[no-any-return]

    def train_batches(self, seed: int) -> Iterator[Batch]:
        return map(self._moved, super().train_batches(seed))

    def calibration_batches(self) -> Iterator[Inputs]:
        return map(self._moved, super().calibration_batches())

    def _evaluated(self, predict: Any, split: str, n_samples: int | None) -> dict[str, float]:
        kept = self._splits[split]
        self._splits[split] = [self._moved(batch) for batch in kept]
        try:
            return super()._evaluated(predict, split, n_samples)
        finally:
            self._splits[split] = kept

    def _moved(self, value: Any) -> Any:
        import torch

        return on_device(value, torch.device(self._device))
