"""ONNX Runtime as a target: writes the file, loads it, runs it with a fixed number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from torch import nn

from autocompress.errors import ExportError, MissingExtraError
from autocompress.runtimes.capabilities import Capability
from autocompress.runtimes.input_spec import Feed, Signature
from autocompress.runtimes.onnx_export import write_onnx
from autocompress.task import DynamicDims, Inputs

_ERRORS_ONLY = 3
_TYPES: dict[str, np.dtype[np.generic]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(bool)": np.dtype(np.bool_),
}


def session_options(n_threads: int) -> ort.SessionOptions:
    """Options with which every file is run, timed and profiled."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # spinning threads would burn the core that the paired reference session runs on
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class OnnxRuntime:
    """See `Runtime`; CPU execution provider, all graph optimizations."""

    name = "onnxruntime"
    provider = "CPUExecutionProvider"
    dynamic_lstm = True  # there is a kernel of LSTMs that rounds what it reads while it runs

    def capabilities(self) -> tuple[Capability, ...]:
        """See `Runtime.capabilities`."""
        self._check_provider()
        layers = ("linear", "conv1d", "conv2d")
        lstm = {"lstm": "uint8 (range found at run time) × int8"} if self.dynamic_lstm else {}
        return (
            Capability(32, dict.fromkeys((*layers, "embedding", "lstm", "gru"), "float32")),
            Capability(8, {**dict.fromkeys(layers, "uint8 × int8"), "embedding": "int8 rows", **lstm}),
            Capability("8w", {"linear": "int8 weights", "embedding": "int8 rows"}),
            Capability("4w", {"linear": "uint4 weights", "embedding": "uint4 rows"}),
        )

    def export(
        self, student: nn.Module, example_inputs: Inputs, folder: Path, dynamic_dims: DynamicDims | None = None
    ) -> Path:
        """Writes `model.onnx`; see `Runtime.export`."""
        file = folder / "model.onnx"
        write_onnx(student, example_inputs, file, dynamic_dims=dynamic_dims, dynamic_lstm=self.dynamic_lstm)
        return file

    def load(self, file: Path, n_threads: int = 1) -> CpuSession:
        """See `Runtime.load`."""
        self._check_provider()
        options = session_options(n_threads)
        providers = list(dict.fromkeys([self.provider, "CPUExecutionProvider"]))
        try:
            return CpuSession(ort.InferenceSession(str(file), options, providers=providers))
        except Exception as error:
            raise ExportError(f"ONNX Runtime {ort.__version__} refuses {file}: {error}") from error

    def _check_provider(self) -> None:
        available = ort.get_available_providers()
        if self.provider not in available:
            raise MissingExtraError(
                f"runtime {self.name!r} needs ONNX Runtime's {self.provider}, but this installation has "
                f"{', '.join(available)}; install the onnxruntime build of that device in place of onnxruntime"
            )


class OnnxRuntimeCuda(OnnxRuntime):
    """See `Runtime`; NVIDIA GPUs, what has no CUDA kernel runs on the CPU."""

    name = "onnxruntime-cuda"
    provider = "CUDAExecutionProvider"
    dynamic_lstm = False


class OnnxRuntimeTensorRT(OnnxRuntime):
    """See `Runtime`; NVIDIA GPUs through TensorRT, what it does not take runs on the CPU."""

    name = "onnxruntime-tensorrt"
    provider = "TensorrtExecutionProvider"
    dynamic_lstm = False


class CpuSession:
    """See `Session`."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        inputs = session.get_inputs()
        self._signature = Signature(
            {item.name: tuple(size if isinstance(size, int) else None for size in item.shape) for item in inputs},
            {item.name: _TYPES[item.type] for item in inputs},
        )

    def prepare(self, inputs: Inputs) -> Feed:
        """Names the inputs and turns them into arrays; see `Session.prepare`.

        Raises:
            InputError: names, shapes or types are not those of the file.
        """
        return self._signature.feed(inputs)

    def run(self, prepared: object) -> object:
        """See `Session.run`."""
        return self._session.run(None, prepared)

    def predict(self, inputs: Inputs) -> Any:
        """See `Session.predict`."""
        return self._signature.predict(inputs, self._outputs)

    def _outputs(self, feed: Feed) -> Sequence[Any]:
        outputs: Sequence[Any] = self._session.run(None, feed)
        return outputs
