"""What makes training faster on a device: a half-precision autocast together with channels-last memory, or neither."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.devices import device_of, is_half, map_tensors
from autocompress.task import Inputs, call_model

_FLOAT32_ONLY = ("mps",)  # autocast there leaves out many ops


@dataclass(frozen=True)
class FastMode:
    """Half-precision autocast with channels-last memory, or plain float32.

    Attributes:
        enabled: whether it is on.
        device_type: of the tensors.
        half: the type that autocast computes in.
    """

    enabled: bool
    device_type: str = "cpu"
    half: torch.dtype = torch.bfloat16

    def __call__(self) -> AbstractContextManager[object]:
        """Context of a forward pass."""
        return torch.autocast(self.device_type, self.half) if self.enabled else nullcontext()

    @property
    def needs_scaling(self) -> bool:
        """Whether gradients would underflow without a scaled loss: float16 has few exponents."""
        return self.enabled and self.half is torch.float16

    def layout(self, inputs: Inputs) -> Inputs:
        """The same inputs, images in channels-last memory."""
        laid: Inputs = map_tensors(_channels_last, inputs) if self.enabled else inputs
        return laid


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def choose_mode(model: nn.Module, inputs: Inputs) -> FastMode:
    """The faster mode for this model on its device.

    On the CPU two forward passes each way are timed, after one to warm up; where a layer has no bfloat16 kernel
    (oneDNN's LSTM on some machines), plain float32 is kept. Accelerators take bfloat16, or float16 where they lack it.
    A model that is in half precision itself needs no autocast.
    """
    device = device_of(model)
    if is_half(model):
        return FastMode(False, device.type)
    return _timed(model, inputs) if device.type == "cpu" else mode_of(device, True)


def mode_of(device: torch.device, enabled: bool) -> FastMode:
    """The mode of a device, without timing anything."""
    if device.type in _FLOAT32_ONLY or not torch.amp.autocast_mode.is_autocast_available(device.type):
        return FastMode(False, device.type)
    lacks = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return FastMode(enabled, device.type, torch.float16 if lacks else torch.bfloat16)


def _timed(model: nn.Module, inputs: Inputs) -> FastMode:
    seconds = {}
    for mode in (FastMode(False), FastMode(True)):
        fed = mode.layout(inputs)
        try:
            with torch.no_grad(), mode():
                call_model(model, fed)
                begin = time.perf_counter()
                for _ in range(2):
                    call_model(model, fed)
            seconds[mode.enabled] = time.perf_counter() - begin
        except RuntimeError:
            if not mode.enabled:
                raise
            return FastMode(False)
    return FastMode(seconds[True] < seconds[False])
