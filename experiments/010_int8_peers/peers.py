"""What each engine's own tool makes of a float file: ONNX Runtime's quantize_static and quantize_dynamic, and NNCF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from autocompress.runtimes import runtime_named, saturates
from autocompress.runtimes.engine_int8 import quantize_static
from autocompress.task import Inputs

LAYERS = ["Conv", "Gemm", "MatMul"]
Q_OPS = ("QuantizeLinear", "DequantizeLinear")


def feeds(file: Path, inputs: Sequence[Inputs]) -> list[dict[str, Any]]:
    """Named arrays of each sample."""
    names = [item.name for item in onnx.load(file, load_external_data=False).graph.input]
    return [
        {key: value.numpy() for key, value in item.items()}
        if isinstance(item, dict)
        else {key: value.numpy() for key, value in zip(names, item, strict=True)}
        for item in inputs
    ]


def static(plain: Path, target: Path, samples: Sequence[Inputs], op_types: list[str] | None) -> None:
    """ONNX Runtime's quantize_static; where kernels saturate its weights have half the range, as ours have."""
    quantize_static(plain, target, samples, saturates(runtime_named("onnxruntime")), op_types)


def nncf_static(plain: Path, target: Path, samples: Sequence[Inputs], transformer: bool) -> None:
    """nncf.quantize of the OpenVINO model."""
    import nncf
    import openvino as ov

    options = {"model_type": nncf.ModelType.TRANSFORMER} if transformer else {}
    model = ov.Core().read_model(plain)
    data = nncf.Dataset(feeds(plain, samples))
    ov.save_model(nncf.quantize(model, data, subset_size=len(samples), **options), target, compress_to_fp16=False)


def optimized_counts(file: Path) -> dict[str, int]:
    """Op types of ONNX Runtime's optimized graph, counted."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    target = file.with_suffix(".optimized.onnx")
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names, n = np.unique([node.op_type for node in onnx.load(target).graph.node], return_counts=True)
    return dict(zip(names.tolist(), n.tolist(), strict=True))


def n_rounding(counts: dict[str, int]) -> int:
    """Quantize and Dequantize nodes."""
    return sum(counts.get(name, 0) for name in Q_OPS)
