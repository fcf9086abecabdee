"""ONNX Runtime as a target: writes the file, loads it, runs it on the CPU with a fixed number of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import ExportError, InputError
from autocompress.runtimes.model_file import write_onnx
from autocompress.task import Inputs

Feed = dict[str, NDArray[np.generic]]
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


class OnnxRuntime:
    """See `Runtime`; CPU execution provider, all graph optimizations."""

    name = "onnxruntime"

    def export(self, student: nn.Module, example_inputs: Inputs, folder: Path) -> Path:
        """Writes `model.onnx`; see `Runtime.export`."""
        file = folder / "model.onnx"
        write_onnx(student, example_inputs, file)
        return file

    def load(self, file: Path, n_threads: int = 1) -> CpuSession:
        """See `Runtime.load`."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # spinning threads would burn the core that the paired reference session runs on
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return CpuSession(ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]))
        except Exception as error:
            raise ExportError(f"ONNX Runtime {ort.__version__} refuses {file}: {error}") from error


class CpuSession:
    """See `Session`."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._names = [item.name for item in session.get_inputs()]
        self._shapes = {item.name: tuple(item.shape) for item in session.get_inputs()}
        self._types = {item.name: _TYPES[item.type] for item in session.get_inputs()}

    def prepare(self, inputs: Inputs) -> Feed:
        """Names the inputs and turns them into arrays; see `Session.prepare`.

        Raises:
            InputError: names or shapes are not those of the file.
        """
        tensors = inputs if isinstance(inputs, dict) else dict(zip(self._names, inputs, strict=False))
        feed = {name: tensors[name].detach().cpu().numpy() for name in self._names if name in tensors}
        shapes = {name: value.shape for name, value in feed.items()}
        if shapes != self._shapes or len(inputs) != len(self._names):
            given = [tuple(t.shape) for t in (inputs.values() if isinstance(inputs, dict) else inputs)]
            raise InputError(f"the file takes {self._shapes}, but got {given}; export again with inputs of that shape")
        for name, value in feed.items():
            if value.dtype != self._types[name]:
                raise InputError(f"input {name!r} of the file is {self._types[name]}, but got {value.dtype}")
        return feed

    def run(self, prepared: object) -> object:
        """See `Session.run`."""
        return self._session.run(None, prepared)

    def predict(self, inputs: Inputs) -> Tensor:
        """See `Session.predict`; the last chunk is filled up with its own last sample."""
        tensors = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
        n_samples, chunk = tensors[0].shape[0], self._shapes[self._names[0]][0]
        outputs = []
        for start in range(0, n_samples, chunk):
            indices = torch.arange(start, start + chunk).clamp(max=n_samples - 1)
            part = (
                {key: value[indices] for key, value in inputs.items()}
                if isinstance(inputs, dict)
                else tuple(value[indices] for value in inputs)
            )
            outputs.append(torch.from_numpy(self._session.run(None, self.prepare(part))[0]))
        return torch.cat(outputs)[:n_samples]
