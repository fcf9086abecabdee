"""Runs the model in this folder with its runtime and numpy, and nothing else.

python run.py                         the example inputs, and whether the answers are as measured
python run.py inputs.npy -o out.npy   your own inputs: one file for each, samples along the first dimension
python run.py --time                  milliseconds of one run on this machine
python run.py --memory                MiB that loading and running the model adds
"""

from __future__ import annotations

import argparse
import hashlib
import json
import operator
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
MANIFEST = "manifest.json"
_PRECISION = "autocompress.inference_precision"  # OpenVINO files note it
Arrays = dict[str, Any]


@dataclass
class Model:
    """A loaded file.

    Attributes:
        names: of its inputs, in order.
        batch_size: samples that one run takes; None where it takes any number.
        run: named arrays of `batch_size` samples to the first output.
    """

    names: list[str]
    batch_size: int | None
    run: Callable[[Arrays], Any]

    def predict(self, inputs: Arrays) -> Any:
        """Outputs for any number of samples; the last run is filled up with the last sample."""
        n_samples = len(inputs[self.names[0]])
        outputs, size = [], self.batch_size or n_samples
        for start in range(0, n_samples, size):
            rows = np.minimum(np.arange(start, start + size), n_samples - 1)
            outputs.append(self.run({name: inputs[name][rows] for name in self.names}))
        return np.concatenate(outputs)[:n_samples]


def open_onnxruntime(file: Path, n_threads: int) -> Model:
    """An ONNX file on the CPU, with the settings that it was measured with."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    size = inputs[0].shape[0]
    return Model(
        [item.name for item in inputs],
        size if isinstance(size, int) else None,
        lambda feed: session.run(None, feed)[0],
    )


def open_openvino(file: Path, n_threads: int) -> Model:
    """An ONNX file on the CPU, with the settings that it was measured with."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(file))
    noted = model.has_rt_info(["framework", _PRECISION])
    precision = model.get_rt_info(["framework", _PRECISION]).astype(str) if noted else "f32"
    settings = {
        "INFERENCE_NUM_THREADS": n_threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    names = [port.get_any_name() for port in compiled.inputs]
    size = compiled.inputs[0].get_partial_shape()[0]
    return Model(names, None if size.is_dynamic else size.get_length(), lambda feed: request.infer(feed)[0])


def open_torch(file: Path, n_threads: int) -> Model:
    """A safetensors file whose header lists the model's ATen calls; nothing is unpickled."""
    import torch

    torch.set_num_threads(n_threads)
    graph, values = read_safetensors(file)
    states = {name: torch.from_numpy(value) for name, value in values.items()}
    names = [item["name"] for item in graph["inputs"]]

    def run(feed: Arrays) -> Any:
        found = dict(states)
        for item in graph["inputs"]:
            found[item["node"]] = torch.from_numpy(np.ascontiguousarray(feed[item["name"]]))
        with torch.inference_mode():
            for call in graph["calls"]:
                args, kwargs = decoded(call["args"], found), decoded(call["kwargs"], found)
                found[call["name"]] = op_named(call["op"])(*args, **kwargs)
            output = decoded(graph["output"], found)
            return (output[0] if isinstance(output, tuple) else output).numpy()

    return Model(names, graph["inputs"][0]["shape"][0], run)


def read_safetensors(file: Path) -> tuple[dict[str, Any], Arrays]:
    """The graph in the header, and the tensors; the format is 8 bytes of length, a JSON header, and plain data."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    graph = json.loads(header.pop("__metadata__")["autocompress_graph"])
    tensors = {}
    for name, entry in header.items():
        begin, stop = entry["data_offsets"]
        data = np.frombuffer(bytearray(content[end + begin : end + stop]), dtype=TYPES[entry["dtype"]])
        tensors[name] = data.reshape(entry["shape"])
    return graph, tensors


def op_named(name: str) -> Callable[..., Any]:
    """An ATen op like "aten.conv2d.default"; no other function of torch can be named."""
    import torch

    if name == "getitem":
        return operator.getitem
    match = re.fullmatch(r"aten\.([a-z_0-9]+)\.([A-Za-z_0-9]+)", name)
    if match is None or match[1] == "from_file":
        raise SystemExit(f"{name!r} is no ATen op that may be called")
    op: Callable[..., Any] = getattr(getattr(torch.ops.aten, match[1]), match[2])
    return op


def decoded(value: Any, found: dict[str, Any]) -> Any:
    """An argument as it was written: nodes by name, torch's constants, infinities."""
    import torch

    if isinstance(value, list):
        return tuple(decoded(item, found) for item in value)
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return found[content]
    if kind == "dict":
        return {key: decoded(item, found) for key, item in content.items()}
    if kind == "device":
        return torch.device("cpu")
    return float(content) if kind == "float" else getattr(torch, content)


TYPES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
OPENERS: dict[str, Callable[[Path, int], Model]] = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "torch": open_torch,
}


def checked_file(manifest: dict[str, Any]) -> Path:
    """The model's file, after all files that the manifest names were compared with their digests."""
    for name, digest in manifest["files"].items():
        if Path(name).name != name or (HERE / name).is_symlink():
            raise SystemExit(f"{name!r} is no file of this folder: {MANIFEST} was edited")
        if not (HERE / name).is_file():
            raise SystemExit(f"{name} is missing: this folder is not as it was measured")
        if sha256_of(HERE / name) != digest:
            raise SystemExit(f"{name} differs from its digest in {MANIFEST}: it is not the file that was measured")
    if manifest["runtime_file"] not in manifest["files"]:
        raise SystemExit(f"{manifest['runtime_file']!r} is no file of this folder: {MANIFEST} was edited")
    if manifest["runtime"] not in OPENERS:
        raise SystemExit(f"the runtime must be one of {', '.join(OPENERS)}, but is {manifest['runtime']!r}")
    return HERE / str(manifest["runtime_file"])


def sha256_of(file: Path) -> str:
    """Read in parts: --memory looks at the most that this process ever held."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def example_inputs(names: list[str]) -> Arrays:
    """The arrays of `examples.npz`, which are named as the file's inputs or numbered in their order."""
    with np.load(HERE / "examples.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return arrays if set(names) <= set(arrays) else dict(zip(names, arrays.values(), strict=True))


def milliseconds(model: Model, inputs: Arrays, seconds: float = 2.0) -> float:
    """Median time of one run."""
    feed = {name: inputs[name][np.arange(model.batch_size or 1) % len(inputs[name])] for name in model.names}
    timings: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(timings) < 5:
        begin = time.perf_counter()
        model.run(feed)
        timings.append(time.perf_counter() - begin)
    return float(np.median(timings)) * 1e3


def memory_mib(key: str) -> float:
    """Memory of this process as Linux tells it: VmRSS is what it holds now, VmHWM the most that it ever held."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this system does not tell how much memory a process holds")


def report_lines(args: argparse.Namespace, manifest: dict[str, Any]) -> Iterator[str]:
    """Does what the arguments ask for; yields what there is to print."""
    file = checked_file(manifest)
    __import__(manifest["runtime"])  # so that --memory counts the model without its runtime
    before = memory_mib("VmRSS") if args.memory else 0.0
    model = OPENERS[manifest["runtime"]](file, args.threads or manifest["n_threads"])
    if args.inputs:
        outputs = model.predict(dict(zip(model.names, map(np.load, args.inputs), strict=True)))
        if args.output:
            np.save(args.output, outputs)
            yield f"outputs: {args.output}, shape {outputs.shape}"
        kind, found = answers(outputs)
        yield f"{kind}: {found}"
        return
    inputs = example_inputs(model.names)
    if args.memory:
        model.predict(inputs)
        yield f"memory: {memory_mib('VmHWM') - before:.3f} MiB"
    elif args.time:
        yield f"time: {milliseconds(model, inputs):.4f} ms"
    else:
        kind, found = answers(model.predict(inputs))
        expected = manifest["examples"][kind.replace(" ", "_")]
        yield f"{kind}: {found}"
        n_equal = int(np.isclose(found, expected, rtol=1e-3, atol=1e-6).sum())
        yield f"as measured: {n_equal} of {len(expected)}"


def answers(outputs: Any) -> tuple[str, list[float]]:
    """For each sample its output where it is a single number, else the position of the largest; and which it is."""
    rows = outputs.reshape(len(outputs), -1)
    if rows.shape[1] == 1:
        return "output", [float(f"{value:.6g}") for value in rows[:, 0]]
    return "largest output", [int(i) for i in rows.argmax(1)]


def main() -> None:
    """Reads the arguments and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", metavar="INPUT.npy", help="one array for each input of the model")
    parser.add_argument("-o", "--output", help="write the outputs to this .npy file")
    parser.add_argument("--threads", type=int, help="threads of the runtime (default: as measured)")
    parser.add_argument("--time", action="store_true", help="time one run")
    parser.add_argument("--memory", action="store_true", help="measure the memory that the model adds")
    args = parser.parse_args()
    for line in report_lines(args, json.loads((HERE / MANIFEST).read_text(encoding="utf-8"))):
        print(line)


if __name__ == "__main__":
    main()
