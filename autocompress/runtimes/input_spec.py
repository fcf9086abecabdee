"""The inputs that an exported file takes, and predictions for any number of samples in chunks of its batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.batches import n_samples
from autocompress.devices import full_precision, map_tensors, tensors_in
from autocompress.errors import InputError
from autocompress.task import Inputs

Feed = dict[str, NDArray[np.generic]]


Dims = tuple[int | None, ...]
"""Sizes of an input; None for one that may differ from call to call."""


@dataclass(frozen=True)
class Signature:
    """Names, shapes and types of a file's inputs, in order; nested inputs are flattened."""

    shapes: Mapping[str, Dims]
    types: Mapping[str, np.dtype[np.generic]]

    def feed(self, inputs: Inputs) -> Feed:
        """The inputs as named arrays.

        Raises:
            InputError: names, shapes or types are not those of the file.
        """
        tensors = self._named(inputs)
        widened = {name for name, kind in self.types.items() if kind == np.float32}
        feed = {
            name: (full_precision(tensors[name]) if name in widened else tensors[name]).detach().cpu().numpy()
            for name in self.shapes
            if name in tensors
        }
        if len(tensors) != len(self.shapes) or not all(
            name in feed and _fits(feed[name].shape, wanted) for name, wanted in self.shapes.items()
        ):
            given = [tuple(tensor.shape) for tensor in tensors_in(inputs)]
            raise InputError(
                f"the file takes {dict(self.shapes)}, but got {given}; export again with inputs of that shape, or name "
                "the dimensions that differ in the task's `dynamic_dims`"
            )
        for name, value in feed.items():
            if value.dtype != self.types[name]:
                raise InputError(f"input {name!r} of the file is {self.types[name]}, but got {value.dtype}")
        return feed

    def predict(self, inputs: Inputs, run: Callable[[Feed], Sequence[Any]]) -> Any:
        """Outputs for any number of samples; the last chunk is filled up with its own last sample.

        A file whose batch size may differ takes all samples at once.

        Args:
            inputs: any number of samples along the first dimension.
            run: the outputs of one feed, arrays.

        Returns:
            The output, or a tuple of them where the file has several.
        """
        size = n_samples(inputs)
        chunk = next(iter(self.shapes.values()))[0] or size
        parts = []
        for start in range(0, size, chunk):
            indices = torch.arange(start, start + chunk).clamp(max=size - 1)
            part = inputs if chunk == size else map_tensors(partial(_rows, indices=indices), inputs)
            parts.append([torch.from_numpy(np.array(output)) for output in run(self.feed(part))])
        outputs = tuple(_joined(list(output), size) for output in zip(*parts, strict=True))
        return outputs[0] if len(outputs) == 1 else outputs

    def _named(self, inputs: Inputs) -> dict[str, Tensor]:
        """The tensors by their names in the file: their own, or by their order where inputs are nested or have none."""
        if not isinstance(inputs, dict):
            return _by_order(self.shapes, tensors_in(inputs))
        if all(isinstance(value, Tensor) for value in inputs.values()):
            return inputs
        names = list(self.shapes)
        first = {key: next((i for i, name in enumerate(names) if name.startswith(key)), len(names)) for key in inputs}
        return _by_order(self.shapes, tensors_in({key: inputs[key] for key in sorted(inputs, key=lambda k: first[k])}))


def _rows(tensor: Tensor, indices: Tensor) -> Tensor:
    return tensor[indices]


def _by_order(names: Iterable[str], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    found = dict(zip(names, tensors, strict=False))
    return {**found, **{f"further {i}": tensor for i, tensor in enumerate(tensors[len(found) :])}}


def _fits(shape: tuple[int, ...], wanted: Dims) -> bool:
    return len(shape) == len(wanted) and all(size in (None, own) for own, size in zip(shape, wanted, strict=True))


def _joined(chunks: list[Tensor], size: int) -> Tensor:
    return torch.cat(chunks)[:size] if chunks[0].ndim else chunks[0]
