"""Our all-8-bit file beside the engine's own tool: optimised graphs, latency in alternating runs, accuracy.

    python run.py files FOLDER [NAME...]      writes float files, ours, and the tools' own
    python run.py speed FOLDER [NAME...]      paired latencies; needs a quiet core; 150 s at most, run again to go on
    python run.py accuracy FOLDER [NAME...]   of the models with trained weights
    python run.py nodes FOLDER                nodes.csv: Quantize/Dequantize nodes in ONNX Runtime's optimised graphs
    python run.py table FOLDER                results.csv

FOLDER takes the files and rows.json. Rows that are there are passed over; --again makes ours anew.
"""

from __future__ import annotations

import csv
import functools
import json
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import models
import peers
import torch
import yaml

from autocompress.compression import compress
from autocompress.graph import inspect_model
from autocompress.latency import time_sessions
from autocompress.machine import describe_machine, describe_versions
from autocompress.runtimes import check_parity, rounds_before_sums, runtime_named
from autocompress.runtimes.engine_int8 import quantize_dynamic_with_engine
from autocompress.runtimes.openvino_backend import CompiledSession, compile_file
from autocompress.space.candidate import Candidate

HERE = Path(__file__).parent
CONFIG: dict[str, Any] = yaml.safe_load((HERE / "config.yaml").read_text())
TIME_LIMIT_S = 150
OURS = {"onnxruntime": "ours_onnxruntime.onnx", "openvino": "ours_openvino.onnx"}


class Rows:
    """Results by model and key, in one JSON file."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "rows.json"

    def get(self) -> dict[str, dict[str, Any]]:
        return json.loads(self._file.read_text()) if self._file.is_file() else {}

    def add(self, name: str, values: Mapping[str, Any]) -> None:
        print(name, dict(values), flush=True)
        rows = self.get()
        rows.setdefault(name, {}).update(values)
        self._file.write_text(json.dumps(rows, indent=1))

    def forget(self, name: str, start: str) -> None:
        rows = self.get()
        rows[name] = {key: value for key, value in rows.get(name, {}).items() if not key.startswith(start)}
        self._file.write_text(json.dumps(rows, indent=1))


def commit() -> str:
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True)
    return head.stdout.strip()


def entries(names: list[str]) -> Iterator[dict[str, Any]]:
    for entry in CONFIG["models"]:
        if not names or entry["name"] in names:
            yield entry


def folder_of(folder: Path, entry: Mapping[str, Any]) -> Path:
    target = folder / f"{entry['source']}_{entry['name']}".replace(":", "_")
    target.mkdir(parents=True, exist_ok=True)
    return target


def _tried(rows: Rows, name: str, what: str, make: Any) -> None:
    try:
        make()
    except Exception as error:
        traceback.print_exc(limit=4)
        rows.add(name, {f"{what}_error": f"{type(error).__name__}: {str(error)[:300]}"})


def files(folder: Path, rows: Rows, names: list[str], again: bool) -> None:
    for entry in entries(names):
        name, target = entry["name"], folder_of(folder, entry)
        begin = time.perf_counter()
        if again:
            rows.forget(name, "ours")
        _tried(rows, name, "files", lambda entry=entry, target=target: _files_of(entry, target, rows, again))
        print(name, f"{time.perf_counter() - begin:.1f} s", flush=True)


def _files_of(entry: Mapping[str, Any], target: Path, rows: Rows, again: bool) -> None:
    name = entry["name"]
    ours = target / OURS["openvino"]
    peers_done = (target / "nncf.xml").is_file()
    if ours.is_file() and not again and peers_done:
        return
    model, example, samples, _ = models.build(entry, CONFIG["calibration_samples"])
    torch.save(example, target / "example.pt")
    plain = target / "float.onnx"
    if not plain.is_file():
        runtime_named("onnxruntime").export(model, example, target).rename(plain)
    _tried(rows, name, "ours", lambda: _ours(model, example, samples, target, rows, name))
    transformer = entry["source"] == "transformers" or "vit" in name or "minilm" in name
    work = {
        "static_layers.onnx": lambda path: peers.static(plain, path, samples, peers.LAYERS),
        "static_all.onnx": lambda path: peers.static(plain, path, samples, None),
        "dynamic.onnx": lambda path: quantize_dynamic_with_engine(plain, path),
        "nncf.xml": lambda path: peers.nncf_static(plain, path, samples, transformer),
    }
    for file, make in work.items():
        if not (target / file).is_file():
            _tried(rows, name, file.partition(".")[0], lambda make=make, file=file: make(target / file))


def _ours(model: Any, example: Any, samples: Any, target: Path, rows: Rows, name: str) -> None:
    graph = inspect_model(model, example)
    bits = {layer.path: 8 for layer in graph.layers}
    more = [f"{item.name}: {item.reason}" for item in graph.frozen if item.what == "layer"]
    rows.add(name, {"ours_n_layers": len(bits), "ours_left_out": more[:5], "ours_commit": commit()})
    for runtime, file in OURS.items():
        engine = runtime_named(runtime)
        rounds = rounds_before_sums(engine)
        student = compress(model, Candidate(weight_bits=bits), example, samples, graph=graph, round_before_sums=rounds)
        written = engine.export(student, example, target).rename(target / file)
        error: float | str = "over the tolerance"
        try:
            error = check_parity(student, engine.load, written, samples[0]).relative_error
        finally:
            rows.add(name, {f"ours_{runtime}_relative_error": error})


def _sessions(target: Path, runtime: str) -> dict[str, Any]:
    """Label -> a function that loads the file."""
    engine = runtime_named(runtime)
    found: dict[str, Any] = {}
    if runtime == "onnxruntime":
        for label in ("float", "static_layers", "static_all", "dynamic"):
            file = target / f"{label}.onnx"
            if file.is_file():
                found[label] = lambda file=file: engine.load(file)
    else:
        found["float"] = lambda: engine.load(target / "float.onnx")
        if (target / "nncf.xml").is_file():
            found["nncf"] = lambda: CompiledSession(compile_file(target / "nncf.xml", 1))
    if (target / OURS[runtime]).is_file():
        found["ours"] = lambda: engine.load(target / OURS[runtime])
    return found


def speed(folder: Path, rows: Rows, names: list[str], again: bool) -> None:
    """Each file against the float file; then ours against the best of the tool's."""
    begin = time.perf_counter()
    for entry in entries(names):
        name, target = entry["name"], folder_of(folder, entry)
        if not (target / "example.pt").is_file():
            continue
        example = torch.load(target / "example.pt", weights_only=True)
        for runtime in OURS:
            timed = functools.partial(_speed_of, name, target, example, runtime, rows)
            _tried(rows, name, f"speed_{runtime}", timed)
            if time.perf_counter() - begin > TIME_LIMIT_S:
                return


def _speed_of(name: str, target: Path, example: Any, runtime: str, rows: Rows) -> None:
    known = rows.get().get(name, {})
    sessions = _sessions(target, runtime)
    if "ours" not in sessions:
        return
    reference = None
    for label, load in sessions.items():
        kind = "ours" if label == "ours" else "peer"
        key = f"{kind}_{runtime}_{label}_ratio"
        if label == "float" or key in known:
            continue
        reference = reference or sessions["float"]()
        try:
            timing = time_sessions(load(), reference, example, CONFIG["rounds"])
        except Exception as error:
            rows.add(name, {f"{kind}_{runtime}_{label}_error": str(error)[:200]})
            continue
        values: dict[str, Any] = {key: timing.ratio, f"{kind}_{runtime}_float_ms": timing.reference_ms}
        if runtime == "onnxruntime":
            file = target / (OURS[runtime] if label == "ours" else f"{label}.onnx")
            values[f"{kind}_{label}_ops"] = peers.optimized_counts(file)
        rows.add(name, values)
    known = rows.get()[name]
    key = f"ours_{runtime}_against_best"
    found = {k: v for k, v in known.items() if k.startswith(f"peer_{runtime}_") and k.endswith("_ratio")}
    if key in known or not found:
        return
    best = min(found, key=found.__getitem__).removeprefix(f"peer_{runtime}_").removesuffix("_ratio")
    timing = time_sessions(sessions["ours"](), sessions[best](), example, CONFIG["rounds"])
    rows.add(name, {key: timing.ratio, f"{key}_spread": timing.spread, f"ours_{runtime}_best_peer": best})


def accuracy(folder: Path, rows: Rows, names: list[str], again: bool) -> None:
    for entry in entries(names):
        if entry["source"] not in ("task", "small"):
            continue
        name, target = entry["name"], folder_of(folder, entry)
        _, _, _, task = models.build(entry, 1)
        for runtime in OURS:
            for label, load in _sessions(target, runtime).items():
                kind = "ours" if label == "ours" else "peer"
                key = f"{kind}_{runtime}_{label}_accuracy"
                if key not in rows.get().get(name, {}):
                    metrics = task.evaluate(load().predict, "test")
                    rows.add(name, {key: next(iter(metrics.values()))})


def nodes(folder: Path, rows: Rows, names: list[str], again: bool) -> None:
    """Counts need no quiet core. An empty cell: there is no such file, and the last column says why ours is missing."""
    found = rows.get()
    labels = ("ours_onnxruntime", "static_layers", "static_all")
    with (HERE / "nodes.csv").open("w", newline="") as stream:
        print(f"# python run.py nodes; commit {commit()}; {describe_machine()}; {describe_versions()}", file=stream)
        writer = csv.writer(stream)
        columns = [f"{label}_q_nodes" for label in labels]
        writer.writerow(["model", *columns, "ours_clip_and_pad", "n_layers", "relative_error", "ours_error"])
        for entry in entries([]):
            row, files_at = found.get(entry["name"], {}), folder_of(folder, entry)
            present = {label: files_at / f"{label}.onnx" for label in labels}
            counts = {k: peers.optimized_counts(file) if file.is_file() else None for k, file in present.items()}
            ours = counts["ours_onnxruntime"]
            left = "" if ours is None else ours.get("Clip", 0) + ours.get("Pad", 0)
            cells = ["" if item is None else peers.n_rounding(item) for item in counts.values()]
            error = row.get("ours_onnxruntime_relative_error", "")
            shown = round(error, 4) if isinstance(error, float) else error
            why = row.get("ours_error") or row.get("files_error") or ""
            writer.writerow([entry["name"], *cells, left, row.get("ours_n_layers", ""), shown, why[:160]])


def table(folder: Path, rows: Rows, names: list[str], again: bool) -> None:
    found = rows.get()
    columns = ["model", "runtime", "float_ms", "ours", "best_peer", "peer", "ours_over_peer", "spread"]
    columns += [
        "ours_q_nodes",
        "peer_q_nodes",
        "ours_accuracy",
        "peer_accuracy",
        "float_accuracy",
        "n_layers",
        "commit",
    ]
    with (HERE / "results.csv").open("w", newline="") as stream:
        print(f"# python run.py files|speed|accuracy|table; {describe_machine()}; {describe_versions()}", file=stream)
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for entry in entries([]):
            row = found.get(entry["name"], {})
            for runtime in OURS:
                writer.writerow(_table_row(entry["name"], runtime, row))


def _table_row(name: str, runtime: str, row: Mapping[str, Any]) -> dict[str, Any]:
    def shown(key: str, digits: int = 3) -> Any:
        value = row.get(key, "")
        return round(value, digits) if isinstance(value, float) else value

    best = row.get(f"ours_{runtime}_best_peer", "")
    ops, theirs = row.get("ours_ours_ops"), row.get(f"peer_{best}_ops")
    return {
        "model": name,
        "runtime": runtime,
        "float_ms": shown(f"ours_{runtime}_float_ms"),
        "ours": shown(f"ours_{runtime}_ours_ratio"),
        "best_peer": best,
        "peer": shown(f"peer_{runtime}_{best}_ratio"),
        "ours_over_peer": shown(f"ours_{runtime}_against_best"),
        "spread": shown(f"ours_{runtime}_against_best_spread"),
        "ours_q_nodes": peers.n_rounding(ops) if ops and runtime == "onnxruntime" else "",
        "peer_q_nodes": peers.n_rounding(theirs) if theirs and runtime == "onnxruntime" else "",
        "ours_accuracy": shown(f"ours_{runtime}_ours_accuracy", 4),
        "peer_accuracy": shown(f"peer_{runtime}_{best}_accuracy", 4),
        "float_accuracy": shown(f"peer_{runtime}_float_accuracy", 4),
        "n_layers": row.get("ours_n_layers", ""),
        "commit": row.get("ours_commit", ""),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    step, place, *rest = sys.argv[1:]
    Path(place).mkdir(parents=True, exist_ok=True)
    steps = {"files": files, "speed": speed, "accuracy": accuracy, "nodes": nodes, "table": table}
    steps[step](Path(place), Rows(Path(place)), [item for item in rest if item != "--again"], "--again" in rest)
