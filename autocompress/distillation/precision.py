"""What makes training faster on a device: a half-precision autocast, channels-last memory, both, or neither."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.devices import device_of, is_half, map_tensors, tensors_in
from autocompress.task import Inputs, call_model

_FLOAT32_ONLY = ("mps",)  # autocast there leaves out many ops


@dataclass(frozen=True)
class FastMode:
    """What makes training faster on a device.

    Attributes:
        bfloat16: forward passes run under bfloat16 autocast, or under that of `half`.
        channels_last: images are in channels-last memory.
        device_type: of the tensors.
        half: the type that autocast computes in; float16 on GPUs that lack bfloat16.
    """

    bfloat16: bool
    channels_last: bool = False
    device_type: str = "cpu"
    half: torch.dtype = torch.bfloat16

    def __call__(self) -> AbstractContextManager[object]:
        """Context of a forward pass."""
        return torch.autocast(self.device_type, self.half) if self.bfloat16 else nullcontext()

    @property
    def needs_scaling(self) -> bool:
        """Whether gradients would underflow without a scaled loss: float16 has few exponents."""
        return self.bfloat16 and self.half is torch.float16

    def layout(self, inputs: Inputs) -> Inputs:
        """The same inputs, images in the memory layout of the mode."""
        laid: Inputs = map_tensors(_channels_last, inputs) if self.channels_last else inputs
        return laid


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


_MODES = (FastMode(False), FastMode(False, channels_last=True), FastMode(True, channels_last=True))


def choose_mode(model: nn.Module, inputs: Inputs) -> FastMode:
    """The fastest mode for this model on its device.

    On the CPU two forward passes in each mode are timed, after one to warm up. A mode that some layer has no kernel for
    (oneDNN's LSTM on some machines in bfloat16) is left out. Accelerators take bfloat16, or float16 where they lack it,
    with channels-last memory. A model that is in half precision itself needs no autocast.
    """
    device = device_of(model)
    if is_half(model):
        return FastMode(False, device_type=device.type)
    return _timed(model, inputs) if device.type == "cpu" else mode_of(device, True, True)


def mode_of(device: torch.device, bfloat16: bool, channels_last: bool = False) -> FastMode:
    """The mode of a device, without timing anything; plain float32 where the device has no autocast."""
    if device.type in _FLOAT32_ONLY or not torch.amp.autocast_mode.is_autocast_available(device.type):
        return FastMode(False, device_type=device.type)
    lacks = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return FastMode(bfloat16, channels_last, device.type, torch.float16 if lacks else torch.bfloat16)


def saved_mode(device: torch.device, saved: Sequence[bool] | bool) -> FastMode:
    """The mode in a state of this kind of device; in states of older versions it is one value for both."""
    return mode_of(device, saved, saved) if isinstance(saved, bool) else mode_of(device, *saved)


def _timed(model: nn.Module, inputs: Inputs) -> FastMode:
    has_images = any(value.ndim == 4 for value in tensors_in(inputs))
    seconds: dict[FastMode, float] = {}
    for mode in _MODES if has_images else (FastMode(False), FastMode(True)):
        try:
            seconds[mode] = _forward_seconds(model, mode, mode.layout(inputs))
        except RuntimeError:
            if not mode.bfloat16:
                raise
    return min(seconds, key=lambda mode: seconds[mode])


def _forward_seconds(model: nn.Module, mode: FastMode, inputs: Inputs) -> float:
    with torch.no_grad(), mode():
        call_model(model, inputs)
        begin = time.perf_counter()
        for _ in range(2):
            call_model(model, inputs)
    return time.perf_counter() - begin
