"""What bits give on CIFAR ResNets: accuracy of files, speed beside the runtimes' own quantizers, random mixtures.

    python run.py files FOLDER      our files and the libraries' own; seconds of calibration, export and check
    python run.py seconds FOLDER    calibration, export and check of ResNet-56, on one quiet core
    python run.py accuracy FOLDER   float model, student and file on the 10,000 test images
    python run.py mixed FOLDER      30 random assignments on each runtime: student and file on 2,000 of the images
    python run.py speed FOLDER      paired latencies; the only part that needs a quiet core

FOLDER takes the models, and results.json with the figures; rows that are there already are passed over.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compression import compress
from autocompress.graph import ModelGraph, inspect_model
from autocompress.latency import time_sessions
from autocompress.machine import describe_machine, describe_versions
from autocompress.runtimes import Session, check_parity, is_executed, rounds_before_sums, runtime_named
from autocompress.space.candidate import Candidate, Precision
from autocompress.task import Inputs, call_model, load_task

HERE = Path(__file__).parent
MODELS, BATCHES, RUNTIMES = ("resnet20", "resnet56"), (1, 64), ("onnxruntime", "openvino")
CHOICES: tuple[Precision, ...] = (32, 16, 8, 8, "8w", "4w", 5)
N_ASSIGNMENTS = 30
N_ROUNDS = 15
SAMPLES = 300


class Results:
    """Rows by section and name, in one JSON file that says where they come from; several processes may add to it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return json.loads(self._file.read_text()) if self._file.is_file() else {}

    def has(self, section: str, name: str) -> bool:
        return name in self.rows.get(section, {})

    def add(self, section: str, name: str, row: dict[str, Any]) -> None:
        print(section, name, row, flush=True)
        more = {name: importlib.metadata.version(name) for name in ("openvino", "nncf", "transformers")}
        with HERE.joinpath("run.py").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            rows = self.rows
            rows["from"] = {"machine": describe_machine(), "versions": describe_versions() | more}
            rows.setdefault(section, {})[name] = {**row, "commit": commit()}
            partial = self._file.with_suffix(".tmp")
            partial.write_text(json.dumps(rows, indent=1) + "\n")
            partial.replace(self._file)


def commit() -> str:
    """Of the package's sources, with a plus where the work tree differs from it."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True)
    state = ["git", "status", "--porcelain", "--untracked-files=no", "--", "../../autocompress"]
    changed = subprocess.run(state, cwd=HERE, capture_output=True, text=True, check=True).stdout
    return head.stdout.strip() + ("+" if changed else "")


def parts(name: str) -> tuple[Any, nn.Module, ModelGraph, list[Inputs]]:
    task = load_task(f"cifar10:{name}")
    model = task.build_model()
    return task, model, inspect_model(model, task.example_inputs()), list(task.calibration_batches())


def batch_of(n: int) -> tuple[Tensor]:
    return (torch.zeros(n, 3, 32, 32),)


def uniform(graph: ModelGraph, bits: Precision) -> Candidate:
    return Candidate(weight_bits={layer.path: bits for layer in graph.layers} if bits != 32 else {})


def files(folder: Path, results: Results) -> None:
    for name in MODELS:
        _, model, graph, calibration = parts(name)
        for bits in (32, 16, 8):
            begin = time.perf_counter()
            student = compress(model, uniform(graph, bits), batch_of(1), calibration, graph=graph)
            calibrated = time.perf_counter() - begin
            for runtime in RUNTIMES:
                for n in BATCHES:
                    target = folder / f"{name}_{runtime}_{bits}_{n}"
                    if results.has("files", target.name):
                        continue
                    target.mkdir(parents=True, exist_ok=True)
                    begin = time.perf_counter()
                    file = runtime_named(runtime).export(student, batch_of(n), target)
                    exported = time.perf_counter()
                    parity = check_parity(student, runtime_named(runtime).load, file, calibration[0])
                    row = {"calibrate_s": calibrated, "export_s": exported - begin}
                    row |= {"check_s": time.perf_counter() - exported, "relative_error": parity.relative_error}
                    results.add("files", target.name, {**row, "bytes": file.stat().st_size})
        theirs(folder, name, calibration)


def seconds(folder: Path, results: Results) -> None:
    """The first runtime that has no row yet: each in a new process, which imports the libraries on the way."""
    _, model, graph, calibration = parts("resnet56")
    runtime = next(name for name in RUNTIMES if not results.has("seconds", f"resnet56 {name}"))
    begin = time.perf_counter()
    student = compress(model, uniform(graph, 8), batch_of(1), calibration, graph=graph)
    calibrated = time.perf_counter()
    target = folder / "seconds"
    target.mkdir(exist_ok=True)
    file = runtime_named(runtime).export(student, batch_of(1), target)
    exported = time.perf_counter()
    check_parity(student, runtime_named(runtime).load, file, calibration[0])
    ended = time.perf_counter()
    row = {"calibrate_s": calibrated - begin, "export_s": exported - calibrated, "check_s": ended - exported}
    results.add("seconds", f"resnet56 {runtime}", {**row, "total_s": ended - begin})


def theirs(folder: Path, name: str, calibration: list[Inputs]) -> None:
    """What the libraries make of the float file by themselves, from the same training images."""
    import nncf
    import openvino as ov
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    images = torch.cat([batch[0] for batch in calibration]).numpy()  # type: ignore[index]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, key: str, n: int) -> None:
            self._items = iter([{key: images[i : i + n]} for i in range(0, len(images), n)])

        def get_next(self) -> Any:
            return next(self._items, None)

    for n in BATCHES:
        plain = folder / f"{name}_onnxruntime_32_{n}" / "model.onnx"
        core = ov.Core()
        if not (folder / f"{name}_nncf_{n}.xml").is_file():
            chunks = [images[i : i + n] for i in range(0, len(images), n)]
            quantized = nncf.quantize(
                core.read_model(plain), nncf.Dataset(chunks), subset_size=min(SAMPLES, len(chunks))
            )
            ov.save_model(quantized, folder / f"{name}_nncf_{n}.xml", compress_to_fp16=False)
        if not (folder / f"{name}_static_{n}.onnx").is_file():
            prepared = folder / f"{name}_prepared_{n}.onnx"
            quant_pre_process(plain, prepared)
            key = core.read_model(plain).inputs[0].get_any_name()
            quantize_static(
                prepared,
                folder / f"{name}_static_{n}.onnx",
                Reader(key, n),
                op_types_to_quantize=["Conv", "Gemm"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )


class Hinted:
    """An OpenVINO model of another maker, compiled as ours are but for its precision hint; a `Session`."""

    def __init__(self, file: Path, hint: str) -> None:
        from openvino import Core

        settings: dict[str, object] = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        settings |= {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        core = Core()
        self._request = core.compile_model(core.read_model(file), "CPU", settings).create_infer_request()

    def prepare(self, inputs: Inputs) -> object:
        from openvino import Tensor as Array

        return {0: Array(inputs[0].numpy())}  # type: ignore[index]

    def run(self, prepared: object) -> object:
        return self._request.infer(prepared, share_inputs=True, share_outputs=True)

    def predict(self, inputs: Inputs) -> Tensor:
        n = self._request.get_input_tensor().shape[0]
        images = inputs[0]  # type: ignore[index]
        chunks = [images[torch.arange(i, i + n).clamp(max=len(images) - 1)] for i in range(0, len(images), n)]
        return torch.cat([torch.from_numpy(self._request.infer({0: c.numpy()})[0].copy()) for c in chunks])[
            : len(images)
        ]


def ours(folder: Path, name: str, runtime: str, bits: Precision, n: int) -> Session:
    return runtime_named(runtime).load(folder / f"{name}_{runtime}_{bits}_{n}" / "model.onnx")


def _static(folder: Path, name: str, n: int) -> Session:
    return runtime_named("onnxruntime").load(folder / f"{name}_static_{n}.onnx")


def test_images(n: int = 10_000) -> tuple[Inputs, Tensor]:
    """The first test images as the models take them, and their labels."""
    from autocompress.tasks.cifar10 import _to_inputs, load_images

    images, labels = load_images("test")
    return _to_inputs(images[:n]), labels[:n]


def answers(model: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return torch.cat([call_model(model, (part,)) for part in inputs[0].split(250)]).argmax(1)  # type: ignore[index]


def share(a: Tensor, b: Tensor) -> float:
    return float((a == b).double().mean())


def accuracy(folder: Path, results: Results) -> None:
    inputs, labels = test_images()
    for name in MODELS:
        _, model, graph, calibration = parts(name)
        if not results.has("accuracy", f"{name} float"):
            results.add("accuracy", f"{name} float", {"model": share(answers(model, inputs), labels)})
        for bits in (16, 8):
            for runtime in RUNTIMES:
                if results.has("accuracy", f"{name} {runtime} {bits}"):
                    continue
                rounds = rounds_before_sums(runtime_named(runtime))
                candidate = uniform(graph, bits)
                student = compress(model, candidate, batch_of(1), calibration, graph=graph, round_before_sums=rounds)
                expected = answers(student, inputs)
                found = ours(folder, name, runtime, bits, 64).predict(inputs).argmax(1)
                row = {"student": share(expected, labels), "file": share(found, labels)}
                results.add("accuracy", f"{name} {runtime} {bits}", {**row, "agreement": share(found, expected)})
        others: dict[str, Callable[[], Session]] = {
            "quantize_static": partial(_static, folder, name, 64),
            "nncf.quantize": partial(Hinted, folder / f"{name}_nncf_64.xml", "f32"),
            "bf16 hint": partial(Hinted, folder / f"{name}_openvino_32_64" / "model.onnx", "bf16"),
        }
        for label, load in others.items():
            if not results.has("accuracy", f"{name} {label}"):
                found = load().predict(inputs).argmax(1)
                results.add("accuracy", f"{name} {label}", {"file": share(found, labels)})


def assignment(graph: ModelGraph, seed: int) -> Candidate:
    rng = random.Random(seed)
    return Candidate(weight_bits={p.path: bits for p in graph.layers if (bits := rng.choice(CHOICES)) != 32})


def mixed(folder: Path, results: Results) -> None:
    inputs, labels = test_images(2_000)
    _, model, graph, calibration = parts("resnet20")
    for seed in range(N_ASSIGNMENTS):
        if results.has("mixed", f"{seed} {RUNTIMES[-1]}"):
            continue
        candidate = assignment(graph, seed)
        student = compress(model, candidate, batch_of(1), calibration, graph=graph)
        expected = answers(student, inputs)
        target = folder / f"mixed_{seed}"
        target.mkdir(parents=True, exist_ok=True)
        # one file for both runtimes: OpenVINO's has a note more, which ONNX Runtime passes over
        file = runtime_named("openvino").export(student, batch_of(1), target)
        for runtime in RUNTIMES:
            engine = runtime_named(runtime)
            table = engine.capabilities()
            executed = [is_executed(table, bits, graph.layer(p).kind) for p, bits in candidate.weight_bits.items()]
            found = engine.load(file).predict(inputs).argmax(1)
            row = {"student": share(expected, labels), "file": share(found, labels), "bytes": file.stat().st_size}
            row |= {"agreement": share(found, expected), "n_size_only": executed.count(False)}
            bits_of = {path: str(bits) for path, bits in candidate.weight_bits.items()}
            results.add("mixed", f"{seed} {runtime}", {**row, "weight_bits": bits_of})


def speed(folder: Path, results: Results) -> None:
    for name in MODELS:
        for n in BATCHES:
            plain = folder / f"{name}_openvino_32_{n}" / "model.onnx"
            sessions = {
                "ort 8": lambda name=name, n=n: ours(folder, name, "onnxruntime", 8, n),
                "ort 32": lambda name=name, n=n: ours(folder, name, "onnxruntime", 32, n),
                "ov 8": lambda name=name, n=n: ours(folder, name, "openvino", 8, n),
                "ov 16": lambda name=name, n=n: ours(folder, name, "openvino", 16, n),
                "ov 32": lambda name=name, n=n: ours(folder, name, "openvino", 32, n),
                "quantize_static": lambda name=name, n=n: _static(folder, name, n),
                "nncf.quantize": lambda name=name, n=n: Hinted(folder / f"{name}_nncf_{n}.xml", "f32"),
                "bf16 hint": lambda plain=plain: Hinted(plain, "bf16"),
            }
            pairs = [("ort 8", "quantize_static"), ("ov 8", "nncf.quantize"), ("ov 16", "bf16 hint")]
            pairs += [("ort 8", "ort 32"), ("quantize_static", "ort 32"), ("ov 8", "ov 32")]
            pairs += [("nncf.quantize", "ov 32"), ("ov 16", "ov 32"), ("ov 32", "ort 32")]
            for first, second in pairs:
                _time(results, "speed", f"{name} batch {n}: {first} / {second}", sessions[first], sessions[second], n)
    for seed in range(N_ASSIGNMENTS):
        file = folder / f"mixed_{seed}" / "model.onnx"
        for runtime in RUNTIMES if file.is_file() else ():
            made = partial(runtime_named(runtime).load, file)
            float_file = partial(ours, folder, "resnet20", runtime, 32, 1)
            _time(results, "mixed speed", f"{seed} {runtime}", made, float_file, 1)


def _time(results: Results, section: str, key: str, candidate: Any, reference: Any, n: int) -> None:
    """Latency of one session as a ratio to another's, in alternating runs; both are loaded here."""
    if results.has(section, key):
        return
    timing = time_sessions(candidate(), reference(), (torch.randn(n, 3, 32, 32),), N_ROUNDS)
    row = {"ratio": timing.ratio, "spread": timing.spread}
    results.add(section, key, {**row, "ms": timing.candidate_ms, "reference_ms": timing.reference_ms})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    steps = {"files": files, "seconds": seconds, "accuracy": accuracy, "mixed": mixed, "speed": speed}
    place = Path(sys.argv[2])
    place.mkdir(parents=True, exist_ok=True)
    steps[sys.argv[1]](place, Results(place / "results.json"))
