"""Measures what bits give: `run.py files|accuracy|speed|mixed FOLDER`; files first. Figures go to FOLDER/*.json."""

from __future__ import annotations

import json
import random
import sys
import time
import warnings
from pathlib import Path

import torch

import autocompress as ac
from autocompress.candidate import Candidate
from autocompress.compression import compress
from autocompress.latency import time_sessions
from autocompress.runtimes import runtime_named
from autocompress.runtimes.parity import check_parity
from autocompress.task import call_model

warnings.simplefilter("ignore")
MODELS, BATCHES, RUNTIMES = ("resnet20", "resnet56"), (1, 64), ("onnxruntime", "openvino")


def parts(name: str):
    task = ac.load_task(f"cifar10:{name}")
    model, inputs = task.build_model(), task.example_inputs()
    return task, model, ac.inspect_model(model, inputs), list(task.calibration_batches())


def batch_of(n: int) -> tuple[torch.Tensor]:
    return (torch.zeros(n, 3, 32, 32),)


def files(folder: Path) -> None:
    """Our files at 32, 16 and 8 bits, NNCF's and ORT's own; seconds of calibration, export and check."""
    seconds = {}
    for name in MODELS:
        _, model, graph, calibration = parts(name)
        for bits in (32, 8, 16):
            begin = time.perf_counter()
            candidate = Candidate(weight_bits={layer.path: bits for layer in graph.layers})
            student = compress(model, candidate, batch_of(1), calibration, graph=graph)
            calibrated = time.perf_counter() - begin
            for runtime in RUNTIMES:
                for n in BATCHES:
                    target = folder / f"{name}_{runtime}_{bits}_{n}"
                    if (target / "model.onnx").is_file():
                        continue
                    target.mkdir(parents=True, exist_ok=True)
                    begin = time.perf_counter()
                    file = runtime_named(runtime).export(student, batch_of(n), target)
                    exported = time.perf_counter() - begin
                    begin = time.perf_counter()
                    error = check_parity(student, runtime_named(runtime), file, calibration[0])
                    checked = time.perf_counter() - begin
                    seconds[target.name] = [calibrated, exported, checked, error, file.stat().st_size]
                    print(target.name, seconds[target.name], flush=True)
        _others(folder, name, calibration)
    (folder / "files.json").write_text(json.dumps(seconds, indent=1))


def _others(folder: Path, name: str, calibration: list[tuple[torch.Tensor]]) -> None:
    """What the libraries make of the float file by themselves, from the same 512 images."""
    import nncf
    import onnx
    import openvino as ov
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    images = torch.cat([batch[0] for batch in calibration]).numpy()
    for n in BATCHES:
        plain = folder / f"{name}_onnxruntime_32_{n}" / "model.onnx"
        chunks = [images[i : i + n] for i in range(0, len(images), n)][:300]
        if not (folder / f"{name}_nncf_{n}.xml").is_file():
            quantized = nncf.quantize(ov.Core().read_model(plain), nncf.Dataset(chunks), subset_size=len(chunks))
            ov.save_model(quantized, folder / f"{name}_nncf_{n}.xml", compress_to_fp16=False)
        target = folder / f"{name}_static_{n}.onnx"
        if target.is_file():
            continue
        prepared = folder / f"{name}_prepared_{n}.onnx"
        quant_pre_process(plain, prepared)

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                key = onnx.load(plain).graph.input[0].name  # noqa: B023
                self._items = iter([{key: chunk} for chunk in chunks])  # noqa: B023

            def get_next(self):
                return next(self._items, None)

        quantize_static(
            prepared,
            target,
            Reader(),
            op_types_to_quantize=["Conv", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def accuracy(folder: Path) -> None:
    """Test accuracy on all 10,000 images: model, student and file; share of equal predictions of the last two."""
    from autocompress.tasks.cifar10 import _to_inputs
    from autocompress.tasks.cifar10_data import load_images

    images, labels = load_images("test")
    inputs = _to_inputs(images)
    out = folder / "accuracy.json"
    rows = json.loads(out.read_text()) if out.is_file() else {}
    for name in MODELS:
        _, model, graph, calibration = parts(name)
        for bits in (8, 16):
            candidate = Candidate(weight_bits={layer.path: bits for layer in graph.layers})
            student = compress(model, candidate, batch_of(1), calibration, graph=graph)
            with torch.no_grad():
                answers = {
                    key: torch.cat([call_model(net, (part,)) for part in inputs[0].split(250)]).argmax(1)
                    for key, net in (("model", model), ("student", student))
                }
            for runtime in RUNTIMES:
                session = runtime_named(runtime).load(folder / f"{name}_{runtime}_{bits}_64" / "model.onnx")
                found = session.predict(inputs).argmax(1)
                row = {key: (value == labels).float().mean().item() for key, value in answers.items()}
                row["file"] = (found == labels).float().mean().item()
                row["agreement"] = (found == answers["student"]).float().mean().item()
                rows[f"{name} {runtime} {bits}"] = row
                print(name, runtime, bits, row, flush=True)
                out.write_text(json.dumps(rows, indent=1))


class Plain:
    """An OpenVINO model of another maker, with a precision hint."""

    def __init__(self, file: Path, hint: str) -> None:
        from openvino import Core

        core = Core()
        settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        settings |= {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        self._request = core.compile_model(core.read_model(file), "CPU", settings).create_infer_request()

    def prepare(self, inputs):
        return [inputs[0].numpy()]

    def run(self, prepared):
        return self._request.infer(prepared, share_inputs=True, share_outputs=True)


def speed(folder: Path) -> None:
    """Ratios of our file's latency to the other's, one thread, alternating runs."""
    out = folder / "speed.json"
    rows = json.loads(out.read_text()) if out.is_file() else {}
    ort, vino = runtime_named("onnxruntime"), runtime_named("openvino")
    for name in MODELS:
        for n in BATCHES:

            def ours(runtime, bits, name=name, n=n):
                return runtime.load(folder / f"{name}_{runtime.name}_{bits}_{n}" / "model.onnx")

            plain = folder / f"{name}_openvino_32_{n}" / "model.onnx"
            pairs = {
                "8 / ORT quantize_static": (ours(ort, 8), ort.load(folder / f"{name}_static_{n}.onnx")),
                "8 / NNCF quantize": (ours(vino, 8), Plain(folder / f"{name}_nncf_{n}.xml", "f32")),
                "16 / bf16 hint": (ours(vino, 16), Plain(plain, "bf16")),
                "8 / fp32, ORT": (ours(ort, 8), ours(ort, 32)),
                "8 / fp32, OpenVINO": (ours(vino, 8), ours(vino, 32)),
                "16 / fp32, OpenVINO": (ours(vino, 16), ours(vino, 32)),
            }
            for label, (candidate, reference) in pairs.items():
                key = f"{name} batch {n}: {label}"
                if key in rows:
                    continue
                timing = time_sessions(candidate, reference, batch_of(n), 9)
                rows[key] = [timing.ratio, timing.spread, timing.candidate_ms, timing.reference_ms]
                print(key, [round(value, 3) for value in rows[key]], flush=True)
                out.write_text(json.dumps(rows, indent=1))


def mixed(folder: Path, n_assignments: int = 30) -> None:
    """Random assignments on ResNet-20: accuracy of student and file on 5,000 images, latency against float32."""
    task, model, graph, calibration = parts("resnet20")
    runtime = runtime_named("openvino")
    reference = runtime.load(folder / "resnet20_openvino_32_1" / "model.onnx")
    out = folder / "mixed.json"
    rows = json.loads(out.read_text()) if out.is_file() else []
    for seed in range(len(rows), n_assignments):
        rng = random.Random(seed)
        bits = {layer.path: rng.choice([32, 16, 8, 8, "8w", "4w", 5]) for layer in graph.layers}
        student = compress(model, Candidate(weight_bits=bits), batch_of(1), calibration, graph=graph)
        session = runtime.load(runtime.export(student, batch_of(1), folder))

        def predict(inputs, student=student):
            with torch.no_grad():
                return call_model(student, inputs)

        timing = time_sessions(session, reference, batch_of(1), 5)
        ours, theirs = (task.evaluate(judge, "test")["accuracy"] for judge in (predict, session.predict))
        rows.append({"seed": seed, "student": ours, "file": theirs, "ratio": timing.ratio, "spread": timing.spread})
        print(rows[-1], flush=True)
        out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    {"files": files, "accuracy": accuracy, "speed": speed, "mixed": mixed}[sys.argv[1]](folder)
