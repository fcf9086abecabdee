"""What a target runtime has to offer, and which ones there are."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from autocompress.errors import AutocompressError, InputError
from autocompress.extensions import find_extension
from autocompress.runtimes.capabilities import Capability
from autocompress.task import Inputs


class Session(Protocol):
    """A loaded file, ready to run at the batch size that it was exported with."""

    def prepare(self, inputs: Inputs) -> object:
        """Turns inputs of exactly the exported shapes into what `run` takes; not part of a timed run."""

    def run(self, prepared: object) -> object:
        """One inference; what a latency measurement times."""

    def predict(self, inputs: Inputs) -> Tensor:
        """Outputs for any number of samples along the first dimension, in chunks of the exported batch size."""


class Runtime(Protocol):
    """Writes a model for an inference engine and runs it there.

    One whose kernels do not round what a sum within an all-8-bit block reads says so: `rounds_before_sums = False`.
    """

    name: str

    def capabilities(self) -> tuple[Capability, ...]:
        """What it executes at each precision on this machine; what is missing is size-only.

        Raises:
            MissingExtraError: the engine or the device that it needs is not there.
        """

    def export(self, student: nn.Module, example_inputs: Inputs, folder: Path) -> Path:
        """Writes the runtime's one file for inputs of these shapes into an existing folder; returns its path.

        Raises:
            ExportError: the model holds something that cannot be written; names the op.
        """

    def load(self, file: Path, n_threads: int = 1) -> Session:
        """Loads a file that `export` wrote.

        Raises:
            ExportError: the runtime refuses the file.
            MissingExtraError: the engine or the device that it needs is not there.
        """


def rounds_before_sums(runtime: Runtime) -> bool:
    """Whether it rounds what a sum within an all-8-bit block reads; it does unless it says no."""
    return bool(getattr(runtime, "rounds_before_sums", True))


RUNTIMES: dict[str, str] = {
    "onnxruntime": "autocompress.runtimes.onnxruntime_backend:OnnxRuntime",
    "onnxruntime-cuda": "autocompress.runtimes.onnxruntime_backend:OnnxRuntimeCuda",
    "onnxruntime-tensorrt": "autocompress.runtimes.onnxruntime_backend:OnnxRuntimeTensorRT",
    "openvino": "autocompress.runtimes.openvino_backend:OpenVino",
    "torch": "autocompress.runtimes.torch_backend:TorchEager",
    "torch-compile": "autocompress.runtimes.torch_backend:TorchCompiled",
    "torch-cuda": "autocompress.runtimes.torch_backend:TorchCuda",
    "torch-cuda-compile": "autocompress.runtimes.torch_backend:TorchCudaCompiled",
}
"""Name -> `module:Class`, imported when it is asked for."""

EXTRAS = {"openvino": "openvino"}
"""Name of a runtime -> the extra that brings its library."""


def runtime_named(name: str) -> Runtime:
    """The runtime of that name in `RUNTIMES`, or at `package.module:Class`.

    Raises:
        InputError: no such runtime.
        MissingExtraError: its library is not installed.
    """
    make = find_extension("runtime", name, RUNTIMES.get(name, name), RUNTIMES, EXTRAS.get(name))
    try:
        runtime: Runtime = make()
    except AutocompressError:
        raise
    except Exception as error:
        raise InputError(f"runtime {name!r} must be a class without arguments, but: {error}") from error
    missing = [method for method in ("capabilities", "export", "load") if not callable(getattr(runtime, method, None))]
    if missing:
        raise InputError(f"runtime {name!r} must have the methods of a runtime, but lacks {', '.join(missing)}")
    return runtime
