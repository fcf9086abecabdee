"""The 8-bit file that a runtime's own tool makes of a float file: what a user would try without a search."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from autocompress.errors import InputError
from autocompress.task import Inputs

_CONV_TYPES = ("Conv", "Gemm", "MatMul")


def quantize_with_engine(
    runtime: str, plain: Path, target: Path, samples: Sequence[Inputs], reduce_range: bool = False
) -> None:
    """Writes the engine's own static 8-bit version of a float file.

    ONNX Runtime: `quantize_static`, QDQ form, uint8 activations, int8 weights by channel, on Conv, Gemm and MatMul.
    OpenVINO: `nncf.quantize` with its defaults.

    Args:
        runtime: "onnxruntime" or "openvino".
        plain: the float file, ONNX.
        target: the file to write.
        samples: calibration inputs of the file's shapes.
        reduce_range: int8 weights of 7 bits, for kernels that saturate; NNCF decides this itself.

    Raises:
        InputError: there is no such tool for the runtime.
    """
    if runtime not in ENGINE_TOOLS:
        raise InputError(f"a tool for 8 bits is known for {sorted(ENGINE_TOOLS)}, but not for {runtime!r}")
    with _quiet():
        ENGINE_TOOLS[runtime].quantize(plain, target, samples, reduce_range)


def quantize_dynamic_with_engine(plain: Path, target: Path, reduce_range: bool = False) -> None:
    """Writes ONNX Runtime's dynamic 8-bit version of a float file: ranges are found at each run.

    Its authors name it for transformers and recurrent nets; for convolutions they name the static one.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet(), _prepared(plain, target) as prepared:
        quantize_dynamic(prepared, target, per_channel=True, weight_type=QuantType.QInt8, reduce_range=reduce_range)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the tools' progress bars and notes from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def _prepared(plain: Path, target: Path) -> Iterator[Path]:
    """The float file after the tool's own pre-processing, next to the target while it is needed."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name(f"prepared_{target.name}")
    quant_pre_process(plain, prepared)
    try:
        yield prepared
    finally:
        prepared.unlink()


def quantize_static(
    plain: Path,
    target: Path,
    samples: Sequence[Inputs],
    reduce_range: bool = False,
    op_types: Sequence[str] | None = _CONV_TYPES,
) -> None:
    """Writes ONNX Runtime's own static 8-bit version; see `quantize_with_engine`.

    Args:
        plain: the float file, ONNX.
        target: the file to write.
        samples: calibration inputs of the file's shapes.
        reduce_range: int8 weights of 7 bits.
        op_types: that are quantized; None takes the tool's own list.
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._items = _feeds(plain, samples)

        def get_next(self) -> Any:
            return next(self._items, None)

    with _quiet(), _prepared(plain, target) as prepared:
        quantization.quantize_static(
            prepared,
            target,
            Reader(),
            op_types_to_quantize=None if op_types is None else list(op_types),
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


def _nncf(plain: Path, target: Path, samples: Sequence[Inputs], reduce_range: bool) -> None:
    import nncf
    import openvino as ov

    model = ov.Core().read_model(plain)
    data = nncf.Dataset(list(_feeds(plain, samples)))
    ov.save_model(nncf.quantize(model, data, subset_size=len(samples)), target, compress_to_fp16=False)


@dataclass(frozen=True)
class EngineTool:
    """A runtime's own tool.

    Attributes:
        title: for tables.
        file_name: of what it writes.
        quantize: writes the file; see `quantize_with_engine`.
    """

    title: str
    file_name: str
    quantize: Callable[[Path, Path, Sequence[Inputs], bool], None]


ENGINE_TOOLS = {
    "onnxruntime": EngineTool("int8 by ONNX Runtime's quantize_static", "model.onnx", quantize_static),
    "openvino": EngineTool("int8 by nncf.quantize", "model.xml", _nncf),
}
"""By the runtime's name."""


def _feeds(file: Path, inputs: Iterable[Inputs]) -> Iterator[dict[str, Any]]:
    names = [item.name for item in onnx.load(file, load_external_data=False).graph.input]
    for item in inputs:
        named = item if isinstance(item, dict) else dict(zip(names, item, strict=True))
        yield {name: value.numpy() for name, value in named.items()}
