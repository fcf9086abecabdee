"""The inputs that an exported file takes, and predictions for any number of samples in chunks of its batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import InputError
from autocompress.task import Inputs

Feed = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Signature:
    """Names, shapes and types of a file's inputs, in order."""

    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, np.dtype[np.generic]]

    def feed(self, inputs: Inputs) -> Feed:
        """The inputs as named arrays.

        Raises:
            InputError: names, shapes or types are not those of the file.
        """
        tensors = inputs if isinstance(inputs, dict) else dict(zip(self.shapes, inputs, strict=False))
        feed = {name: tensors[name].detach().cpu().numpy() for name in self.shapes if name in tensors}
        shapes = {name: value.shape for name, value in feed.items()}
        if shapes != self.shapes or len(inputs) != len(self.shapes):
            given = [tuple(t.shape) for t in (inputs.values() if isinstance(inputs, dict) else inputs)]
            raise InputError(f"the file takes {self.shapes}, but got {given}; export again with inputs of that shape")
        for name, value in feed.items():
            if value.dtype != self.types[name]:
                raise InputError(f"input {name!r} of the file is {self.types[name]}, but got {value.dtype}")
        return feed

    def predict(self, inputs: Inputs, run: Callable[[Feed], NDArray[np.generic]]) -> Tensor:
        """Outputs for any number of samples; the last chunk is filled up with its own last sample.

        Args:
            inputs: any number of samples along the first dimension.
            run: the first output of one feed.
        """
        tensors = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
        n_samples, chunk = tensors[0].shape[0], next(iter(self.shapes.values()))[0]
        outputs = []
        for start in range(0, n_samples, chunk):
            indices = torch.arange(start, start + chunk).clamp(max=n_samples - 1)
            part = (
                {key: value[indices] for key, value in inputs.items()}
                if isinstance(inputs, dict)
                else tuple(value[indices] for value in inputs)
            )
            outputs.append(torch.from_numpy(np.array(run(self.feed(part)))))
        return torch.cat(outputs)[:n_samples]
