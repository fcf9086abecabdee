"""OpenVINO as a target: writes the file, compiles it for the CPU, runs it with a fixed number of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.compression.quantize import QuantizedLayer, stored_bits
from autocompress.compression.quantize.layers import LAYERS
from autocompress.errors import ExportError
from autocompress.runtimes.capabilities import Capability
from autocompress.runtimes.input_spec import Feed, Signature
from autocompress.runtimes.onnx_export import write_onnx
from autocompress.space.candidate import HALF_BITS
from autocompress.task import Inputs

_DEVICE = "CPU"
_NOTE = "autocompress.inference_precision"
_HALF = "bfloat16 if all others are at 16 or 8, else float32"


class OpenVino:
    """See `Runtime`; CPU device, one stream.

    The engine has one precision for everything that is not integer. On CPUs that have bfloat16 a file computes in it if
    all its layers are at 16 or 8 bits (embeddings at any); with others, and on other CPUs, those at 16 are size-only.
    Its own default, on CPUs that have bfloat16, is bfloat16.
    """

    name = "openvino"
    rounds_before_sums = False  # one kernel computes convolution, sum and the next rounding

    def capabilities(self) -> tuple[Capability, ...]:
        """See `Runtime.capabilities`."""
        device = ov.Core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        layers, recurrent = ("linear", "conv1d", "conv2d"), ("lstm", "gru")
        return (
            Capability(32, dict.fromkeys((*layers, "embedding", *recurrent), "float32")),
            Capability(16, dict.fromkeys((*layers, *recurrent), _HALF) if "BF16" in device else {}),
            Capability(8, {**dict.fromkeys(layers, "uint8 × int8"), "embedding": "int8 rows"}),
            Capability("8w", {"linear": "int8 weights", "embedding": "int8 rows"}),
            Capability("4w", {"linear": "uint4 weights", "embedding": "uint4 rows"}),
        )

    def export(self, student: nn.Module, example_inputs: Inputs, folder: Path) -> Path:
        """Writes `model.onnx`; see `Runtime.export`."""
        file = folder / "model.onnx"
        write_onnx(student, example_inputs, file, {_NOTE: _float_precision(student)})
        return file

    def load(self, file: Path, n_threads: int = 1) -> CompiledSession:
        """See `Runtime.load`."""
        try:
            return CompiledSession(compile_file(file, n_threads))
        except Exception as error:
            raise ExportError(f"OpenVINO {ov.__version__} refuses {file}: {error}") from error


def _float_precision(student: nn.Module) -> str:
    """The precision of float layers: "bf16" where some are at 16 bits and no other is in float32."""
    layers = [module for module in student.modules() if isinstance(module, tuple(LAYERS))]
    halves = {id(layer) for layer in layers if isinstance(layer, QuantizedLayer) and stored_bits(layer) == HALF_BITS}
    others = [layer for layer in layers if id(layer) not in halves and not isinstance(layer, nn.Embedding)]
    integer = all(isinstance(layer, QuantizedLayer) and layer.reads_integers for layer in others)
    return "bf16" if halves and integer else "f32"


def compile_file(file: Path, n_threads: int, **more: object) -> ov.CompiledModel:
    """A file as it is run, timed and profiled, with the precision that it notes and perhaps more settings."""
    core = ov.Core()
    model = core.read_model(str(file))
    noted = model.has_rt_info(["framework", _NOTE])
    precision = model.get_rt_info(["framework", _NOTE]).astype(str) if noted else "f32"
    settings = {
        "INFERENCE_NUM_THREADS": n_threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # pinned threads of two processes would share one core while another idles
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": precision,
    }
    return core.compile_model(model, _DEVICE, {**settings, **more})


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
