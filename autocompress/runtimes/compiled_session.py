"""OpenVINO as a target: writes the file, compiles it for the CPU, runs it with a fixed number of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import ExportError
from autocompress.runtimes.capabilities import Capability
from autocompress.runtimes.feeding import Feed, Signature
from autocompress.runtimes.model_file import write_onnx
from autocompress.task import Inputs

_DEVICE = "CPU"


class OpenVino:
    """See `Runtime`; CPU device, one stream."""

    name = "openvino"

    def capabilities(self) -> tuple[Capability, ...]:
        """See `Runtime.capabilities`."""
        table = [Capability(32, dict.fromkeys(("conv2d", "linear"), "float32"))]
        if "INT8" in ov.Core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"):
            table.append(Capability(8, dict.fromkeys(("conv2d", "linear"), "uint8 × int8 → int32")))
        return tuple(table)

    def export(self, student: nn.Module, example_inputs: Inputs, folder: Path) -> Path:
        """Writes `model.onnx`; see `Runtime.export`."""
        file = folder / "model.onnx"
        write_onnx(student, example_inputs, file)
        return file

    def load(self, file: Path, n_threads: int = 1) -> CompiledSession:
        """See `Runtime.load`."""
        try:
            core = ov.Core()
            compiled = core.compile_model(core.read_model(str(file)), _DEVICE, settings(n_threads))
        except Exception as error:
            raise ExportError(f"OpenVINO {ov.__version__} refuses {file}: {error}") from error
        return CompiledSession(compiled)


def settings(n_threads: int) -> dict[str, object]:
    """Settings with which every file is run, timed and profiled."""
    return {
        "INFERENCE_NUM_THREADS": n_threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # pinned threads of two processes would share one core while another idles
        "ENABLE_CPU_PINNING": False,
        # on CPUs that have bfloat16, the device would else compute float32 models in bfloat16
        "INFERENCE_PRECISION_HINT": "f32",
    }


class CompiledSession:
    """See `Session`."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._request = compiled.create_infer_request()
        inputs = {port.get_any_name(): port for port in compiled.inputs}
        self._signature = Signature(
            {name: tuple(port.get_shape()) for name, port in inputs.items()},
            {name: np.dtype(port.get_element_type().to_dtype()) for name, port in inputs.items()},
        )

    def prepare(self, inputs: Inputs) -> dict[str, ov.Tensor]:
        """Names the inputs and turns them into the engine's tensors; see `Session.prepare`.

        Raises:
            InputError: names, shapes or types are not those of the file.
        """
        feed = self._signature.feed(inputs)
        return {name: ov.Tensor(np.ascontiguousarray(value)) for name, value in feed.items()}

    def run(self, prepared: object) -> object:
        """See `Session.run`."""
        return self._request.infer(prepared, share_inputs=True, share_outputs=True)

    def predict(self, inputs: Inputs) -> Tensor:
        """See `Session.predict`."""
        return self._signature.predict(inputs, self._first_output)

    def node_times(self) -> list[ov.ProfilingInfo]:
        """Each node with its mean time over the runs so far; of a model that was compiled to count them."""
        return list(self._request.profiling_info)

    def _first_output(self, feed: Feed) -> NDArray[np.generic]:
        output: NDArray[np.generic] = self._request.infer(feed)[0]
        return output
