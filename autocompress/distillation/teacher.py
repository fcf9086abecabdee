"""The uncompressed model as a teacher, whose outputs on a stream of batches are kept up to a limit of bytes."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.devices import device_of, map_tensors, tensors_in
from autocompress.distillation.precision import FastMode, choose_mode
from autocompress.errors import InputError
from autocompress.task import Inputs, Predict, call_model

KEPT_BYTES = 256 * 2**20
"""Most bytes of outputs that a worker keeps."""


class Teacher:
    """The uncompressed model, whose outputs on a stream of batches are computed once and kept.

    Outputs are kept by position in the stream and given again only for the very same inputs (shape and checksum) in the
    same mode, so that a task whose batches differ each time is still right, just slower. When the limit is reached, the
    first positions stay, which the next fine-tune asks for first; further ones are computed each time. On an
    accelerator all are: a checksum there would wait for the device at each step.

    Args:
        model: put into evaluation mode; on the device where students are trained.
        mode: of its forward passes; None chooses the faster one.
        kept_bytes: most bytes of outputs that are kept.
        engine: gives the model's outputs faster than torch does; it may refuse inputs of other shapes by an
            `InputError`.
    """

    def __init__(
        self,
        model: nn.Module,
        mode: FastMode | None = None,
        kept_bytes: int = KEPT_BYTES,
        engine: Predict | None = None,
    ) -> None:
        self.model = model.eval()
        self.mode = mode
        self.engine = engine
        self.device = device_of(model)
        self._kept: dict[int, tuple[bytes, Any]] = {}
        self._bytes_left = kept_bytes

    def outputs(self, position: int, inputs: Inputs, mode: FastMode | None = None) -> Any:
        """float32 outputs for the batch at `position` of the stream; see `run` for the mode."""
        mode = mode or self.mode_for(inputs)
        kept = self._kept.get(position)
        if self.device.type != "cpu" or (kept is None and self._bytes_left <= 0):
            return self._computed(inputs, mode)
        key = _checksum(inputs) + bytes([mode.bfloat16, mode.channels_last])
        if kept is None or kept[0] != key:
            kept = (key, self._computed(inputs, mode))
            self._keep(position, kept)
        return kept[1]

    def _computed(self, inputs: Inputs, mode: FastMode) -> Any:
        if self.engine is not None:
            with suppress(InputError):
                return as_float32(self.engine(inputs))
        return self.run(inputs, mode)

    def _keep(self, position: int, keyed: tuple[bytes, Any]) -> None:
        """Keeps the outputs of a position if there is room; from the first that has none on, no others are."""
        former = self._kept.pop(position, None)
        self._bytes_left += 0 if former is None else _n_bytes(former[1])
        n_bytes = _n_bytes(keyed[1])
        if n_bytes > self._bytes_left:
            self._bytes_left = 0
            return
        self._kept[position] = keyed
        self._bytes_left -= n_bytes

    def run(self, inputs: Inputs, mode: FastMode | None = None) -> Any:
        """float32 outputs, without gradients; in that mode, by default in the one that is faster here."""
        mode = mode or self.mode_for(inputs)
        with torch.no_grad(), mode():
            return as_float32(call_model(self.model, mode.layout(inputs)))

    def mode_for(self, inputs: Inputs) -> FastMode:
        """The mode that is faster on this machine, chosen on these inputs the first time."""
        if self.mode is None:
            self.mode = choose_mode(self.model, inputs)
        return self.mode


def as_float32(outputs: Any) -> Any:
    """The outputs of a model with floating-point tensors in float32."""
    return map_tensors(lambda value: value.float() if value.is_floating_point() else value, outputs)


def _n_bytes(value: object) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(value))


def _checksum(inputs: Inputs) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for value in tensors_in(inputs):
        digest.update(f"{tuple(value.shape)}{value.dtype}".encode())
        digest.update(_bytes_of(value))
    return digest.digest()


def _bytes_of(value: Tensor) -> Any:
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
