"""The program of the child processes that try libraries: a line of JSON for each runtime, as soon as it was tried.

Each library has a process of its own, so that one that crashes or hangs takes nothing else with it. They are forked
from one process that has imported PyTorch, which takes seconds.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LIBRARIES: dict[str, tuple[str, ...]] = {
    "search": ("optuna", "ray"),
    "onnxruntime": ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt"),
    "openvino": ("openvino",),
    "torch": ("torch", "torch-cuda", "torch-cuda-compile", "torch-compile"),
}
"""Library -> what is tried in its process, in this order: names of runtimes, or of modules that a search imports."""

SEARCH = "search"
"""The one of them whose modules are only imported, and need no PyTorch."""

_TOLERANCE = 0.02
_WEIGHTS = [[0.5, -1.0, 0.25], [1.0, 0.5, -0.5]]
_INPUTS = [[1.0, 2.0], [-1.0, 0.5]]
_OUTPUTS = [[2.5, 0.0, 0.0], [0.0, 1.25, 0.0]]
"""relu(inputs @ weights), by hand."""


def main(folder: str, libraries: Sequence[str] = tuple(LIBRARIES)) -> None:
    """Tries the libraries, all at the same time.

    Args:
        folder: for each library gets LIBRARY.out, a line of JSON for each finding; LIBRARY.err, what it wrote besides;
            and LIBRARY.exit, its exit code, or minus the number of the signal that ended it.
        libraries: of `LIBRARIES`.
    """
    first = [library for library in libraries if library == SEARCH]
    children = {_fork(library, Path(folder) / library): library for library in first}
    with contextlib.suppress(Exception):  # each runtime will meet it again, and say so
        importlib.import_module("autocompress.runtimes")
    children |= {_fork(library, Path(folder) / library): library for library in libraries if library not in first}
    for _ in range(len(children)):
        pid, status = os.wait()
        exit_code = str(os.waitstatus_to_exitcode(status))
        (Path(folder) / f"{children[pid]}.exit").write_text(exit_code, encoding="ascii")


def _fork(library: str, output: Path) -> int:
    """Starts the process of a library; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    exit_code = 1
    try:
        for stream, end in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(output.with_suffix(end), os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        for finding in _findings(library):
            os.write(1, (json.dumps(finding) + "\n").encode())
        exit_code = 0
    except BaseException:  # else the fork would continue its parent's work
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(exit_code)


def _findings(library: str) -> Iterator[dict[str, Any]]:
    for name in LIBRARIES[library]:
        yield try_import(name) if library == SEARCH else try_runtime(name)
        if name == "torch":
            yield {"name": "accelerators", "state": "ok", "text": ", ".join(_accelerators())}


def try_import(name: str) -> dict[str, Any]:
    """Imports a module."""
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever the module raises
        return _finding(name, "failed", _in_a_line(error))
    return _finding(name, "ok", "imports")


def try_runtime(name: str) -> dict[str, Any]:
    """Loads a tiny model in a runtime, runs it, and compares its outputs with those computed by hand."""
    try:
        return _tried(name)
    except Exception as error:  # whatever the library raises
        from autocompress.errors import MissingExtraError

        if isinstance(error, MissingExtraError):
            return _finding(name, "missing", str(error))
        return _finding(name, "failed", _in_a_line(error))


def _tried(name: str) -> dict[str, Any]:
    import torch

    from autocompress.runtimes import runtime_named

    runtime = runtime_named(name)
    executes = {str(item.precision): dict(item.kernels) for item in runtime.capabilities() if item.kernels}
    with tempfile.TemporaryDirectory(prefix="autocompress-doctor-") as folder:
        session = runtime.load(_tiny_file(name, runtime, Path(folder)))
        given = session.predict((torch.tensor(_INPUTS),))
    off = float((given - torch.tensor(_OUTPUTS)).abs().max())
    if not off <= _TOLERANCE:
        return _finding(name, "failed", f"a tiny model gives wrong outputs: they are off by {off:.3g}")
    return {**_finding(name, "ok", "runs a tiny model"), "executes": executes}


def _tiny_file(name: str, runtime: Any, folder: Path) -> Path:
    """A linear layer and a ReLU; engines that read ONNX get it without PyTorch's exporter, which takes seconds."""
    if not name.startswith("torch"):
        return _tiny_onnx(folder / "model.onnx")
    import torch
    from torch import nn

    layer = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(_WEIGHTS).T)
    file: Path = runtime.export(nn.Sequential(layer, nn.ReLU()).eval(), (torch.tensor(_INPUTS),), folder)
    return file


def _tiny_onnx(file: Path) -> Path:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("MatMul", ["x", "w"], ["product"]), helper.make_node("Relu", ["product"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(np.array(_WEIGHTS, np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def _accelerators() -> list[str]:
    """The accelerators that torch sees, with the names of CUDA devices."""
    import torch

    from autocompress.devices import accelerators

    found = accelerators()
    return [f"{name} ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else name for name in found]


def _finding(name: str, state: str, text: str) -> dict[str, Any]:
    return {"name": name, "state": state, "text": text}


def _in_a_line(error: BaseException) -> str:
    """The kind of error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
