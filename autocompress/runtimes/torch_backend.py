"""PyTorch itself as a target: eager or compiled, on the CPU or a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import MissingExtraError
from autocompress.runtimes.capabilities import Capability
from autocompress.runtimes.input_spec import Feed, Signature
from autocompress.runtimes.torch_export_file import read_aten, write_aten
from autocompress.task import Inputs


class TorchEager:
    """See `Runtime`; the model's own ATen calls on the CPU, without its Python."""

    name = "torch"
    device = "cpu"
    compiled = False

    def capabilities(self) -> tuple[Capability, ...]:
        """See `Runtime.capabilities`."""
        self._check_device()
        return (Capability(32, dict.fromkeys(("conv2d", "linear"), "float32")),)

    def export(self, student: nn.Module, example_inputs: Inputs, folder: Path) -> Path:
        """Writes `model.safetensors`; see `Runtime.export`."""
        file = folder / "model.safetensors"
        write_aten(student, example_inputs, file)
        return file

    def load(self, file: Path, n_threads: int = 1) -> AtenSession:
        """See `Runtime.load`."""
        self._check_device()
        module, inputs = read_aten(file, self.device)
        run: Callable[..., Any] = torch.compile(module) if self.compiled else module
        types = {item["name"]: torch.zeros((), dtype=getattr(torch, item["dtype"])).numpy().dtype for item in inputs}
        signature = Signature({item["name"]: tuple(item["shape"]) for item in inputs}, types)
        return AtenSession(run, signature, self.device, n_threads)

    def _check_device(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise MissingExtraError(
                f"runtime {self.name!r} needs a CUDA device and a build of torch for it, but torch {torch.__version__} "
                "finds none; use the runtime 'torch', or run where there is one"
            )


class TorchCompiled(TorchEager):
    """See `Runtime`; `torch.compile` on the CPU, which needs a C++ compiler."""

    name = "torch-compile"
    compiled = True


class TorchCuda(TorchEager):
    """See `Runtime`; eager on the first CUDA device."""

    name = "torch-cuda"
    device = "cuda"


class TorchCudaCompiled(TorchCuda):
    """See `Runtime`; `torch.compile` on the first CUDA device."""

    name = "torch-cuda-compile"
    compiled = True


class AtenSession:
    """See `Session`; a run on a CUDA device ends when the device is done.

    Attributes:
        device: "cpu" or "cuda".
    """

    def __init__(self, call: Callable[..., Any], signature: Signature, device: str, n_threads: int) -> None:
        self._call, self._signature = call, signature
        self.device, self._n_threads = device, n_threads

    def prepare(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """The inputs in order, on the device; see `Session.prepare`.

        Raises:
            InputError: names, shapes or types are not those of the file.
        """
        return self._on_device(self._signature.feed(inputs))

    def run(self, prepared: object) -> object:
        """See `Session.run`."""
        assert isinstance(prepared, tuple)
        with torch.inference_mode(), _threads(self._n_threads):
            output = self._call(*prepared)
            if self.device == "cuda":
                torch.cuda.synchronize()
        return output

    def predict(self, inputs: Inputs) -> Tensor:
        """See `Session.predict`."""
        return self._signature.predict(inputs, self._first_output)

    def _first_output(self, feed: Feed) -> NDArray[np.generic]:
        output = self.run(self._on_device(feed))
        assert isinstance(output, Tensor)
        result: NDArray[np.generic] = output.cpu().numpy()
        return result

    def _on_device(self, feed: Feed) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(np.ascontiguousarray(value)).to(self.device) for value in feed.values())


@contextmanager
def _threads(n_threads: int) -> Iterator[None]:
    """Sets the process-wide thread count for the session's run; training in the same process keeps its own."""
    before = torch.get_num_threads()
    if before == n_threads:
        yield
        return
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
