"""Measures a folder of files on the target device: needs only Python, numpy and the runtime.

The same code runs inside `autocompress profile` and, zipped into one script, on a device that has no torch. A folder
holds `plan.json`, the uncompressed model's file and the files to be timed against it. The measurements are saved in one
JSON file every five seconds, and an interrupted run resumes from it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import AutocompressError, InputError, MeasurementError, MissingExtraError
from autocompress.files import write_atomically
from autocompress.latency.clock import PairedTiming, Run, time_pair
from autocompress.latency.device_files import read_plan, read_results
from autocompress.machine import describe_machine

PLAN, MEASURED = "plan.json", "measured.json"
SCHEMA_VERSION, WEIGHTS_SEED = 1, 0
PRECISION_NOTE = "autocompress.inference_precision"  # metadata: what a file's float layers compute in
_MAX_SPREAD = 0.08  # an idle machine stays below, also with the bfloat16 units' clocks
_BUSY = 1.06  # the reference may be this much slower than on the idle machine
_MAX_REPEATS, _IDLE_ATTEMPTS = 4, 5
_MAX_NOISY_SHARE = 0.2
_SAVE_SECONDS = 5.0
_WORTH_MENTIONING = 0.1

Opener = Callable[[Path], Run]
Listener = Callable[[int, int, float], None]


@dataclass(frozen=True)
class MeasureSettings:
    """How files are timed.

    Attributes:
        n_passes: how often each file is measured, apart in time; the differences show how repeatable that is.
        n_rounds: of one measurement, see `time_pair`.
        seconds: no file is begun after this time; None is no limit.
        force: measure on a noisy machine too.
    """

    n_passes: int = 1
    n_rounds: int = 9
    seconds: float | None = None
    force: bool = False


def measure_folder(
    folder: Path,
    output: Path,
    settings: MeasureSettings = MeasureSettings(),
    *,
    opener: Opener | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Times every file of a folder against the reference, in passes over all files in random order.

    Args:
        folder: with a `plan.json`.
        output: JSON file of the measurements; an existing one is resumed.
        settings: how files are timed.
        opener: loads a file and returns its run; None is the runtime that the plan names.
        listener: called with the files done, all files, and the seconds left.

    Returns:
        What is in the file.

    Raises:
        MeasurementError: the machine is too noisy; says how noisy.
        InputError: the folder has no plan, or the output is of another plan, runtime version or device.
    """
    plan = read_plan(folder / PLAN)
    write_weights(folder, plan)
    runtime, version = plan["runtime"], runtime_version(plan["runtime"])
    open_file = opener or (lambda file: open_session(runtime, file, plan["n_threads"]))
    results = _begin(plan, version, output)
    reference = open_file(folder / plan["reference"])
    _check_idle(reference, results, settings.force)
    begin = saved = time.monotonic()
    out_of_time = False
    for n_wanted in range(1, settings.n_passes + 1):
        for attempt in range(_MAX_REPEATS):
            waiting = _waiting(plan["files"], results, n_wanted)
            for i, name in enumerate(waiting):
                out_of_time = settings.seconds is not None and time.monotonic() - begin > settings.seconds
                if out_of_time:
                    break
                _note(results, name, time_pair(open_file(folder / name), reference, settings.n_rounds))
                if time.monotonic() - saved > _SAVE_SECONDS:
                    write_json(output, results)
                    saved = time.monotonic()
                if listener is not None and attempt == 0:
                    done, n_all = len(waiting) * (n_wanted - 1) + i + 1, len(waiting) * settings.n_passes
                    listener(done, n_all, (time.monotonic() - begin) / done * (n_all - done))
    results |= {"finished": _now(), "complete": not out_of_time}
    write_json(output, results)
    if results["complete"]:
        _check_undisturbed(results, settings.force)
    return results


def _waiting(files: Sequence[str], results: Mapping[str, Any], n_wanted: int) -> list[str]:
    """Files with fewer undisturbed measurements than wanted, in random order."""
    measured, limit = results["measured"], undisturbed_limit(results)
    short = [name for name in files if name not in measured or sum(_undisturbed(measured[name], limit)) < n_wanted]
    return random.Random(n_wanted).sample(short, len(short))


def undisturbed_limit(results: Mapping[str, Any]) -> float:
    """The largest reference latency, milliseconds, of a measurement on the idle machine.

    While a neighbour is busy the reference runs slower, and integer kernels slow down more than it does, so that the
    ratio is wrong whatever the number of rounds.
    """
    return _BUSY * float(np.percentile(results["reference_ms"], 10)) if results["reference_ms"] else float("inf")


def _undisturbed(figures: Mapping[str, Sequence[float]], limit: float) -> list[bool]:
    pairs = zip(figures["reference_ms"], figures["spread"], strict=True)
    return [reference <= limit and spread <= _MAX_SPREAD for reference, spread in pairs]


def _undisturbed_ratios(figures: Mapping[str, Sequence[float]], limit: float) -> list[float]:
    return [ratio for ratio, good in zip(figures["ratio"], _undisturbed(figures, limit), strict=True) if good]


def converged(results: Mapping[str, Any]) -> dict[str, float]:
    """File -> ratio: the median of its undisturbed measurements, else the one with the fastest reference."""
    limit = undisturbed_limit(results)
    ratios = {}
    for name, figures in results["measured"].items():
        kept = _undisturbed_ratios(figures, limit)
        fallback = figures["ratio"][int(np.argmin(figures["reference_ms"]))]
        ratios[name] = float(np.median(kept)) if kept else fallback
    return ratios


def _begin(plan: Mapping[str, Any], version: str, output: Path) -> dict[str, Any]:
    """Results so far, or empty ones."""
    head = {
        "schema": SCHEMA_VERSION,
        "plan": plan["digest"],
        "runtime": plan["runtime"],
        "version": version,
        "n_threads": plan["n_threads"],
        "batch": plan["batch"],
        "device": describe_machine(),
    }
    if not output.is_file():
        return {**head, "started": _now(), "reference_ms": [], "measured": {}}
    results = read_results(output)
    for key, value in head.items():
        if results.get(key) != value:
            raise InputError(f"{output} has {key} {results.get(key)!r}, but here it is {value!r}; name another file")
    return results


def _check_idle(reference: Run, results: dict[str, Any], force: bool) -> None:
    """Times the reference against itself until the ratio is steady."""
    for attempt in range(_IDLE_ATTEMPTS):
        timing = time_pair(reference, reference, 5)
        off = max(timing.spread, abs(timing.ratio - 1))
        if off <= _MAX_SPREAD:
            results["self_ratio"] = round(timing.ratio, 4)
            return
        if attempt < _IDLE_ATTEMPTS - 1:
            time.sleep(2.0**attempt)
    if not force:
        raise MeasurementError(
            f"the machine must be idle, but the uncompressed model against itself is off by {off:.0%} (at most "
            f"{_MAX_SPREAD:.0%} is steady) with a load average of {_load():.1f} on {os.cpu_count()} cores and governor "
            f"{results['device']['governor']!r}; stop other programs, or measure all the same with --force"
        )


def _check_undisturbed(results: Mapping[str, Any], force: bool) -> None:
    limit = undisturbed_limit(results)
    noisy = [name for name, figures in results["measured"].items() if not any(_undisturbed(figures, limit))]
    if len(noisy) > _MAX_NOISY_SHARE * len(results["measured"]) and not force:
        raise MeasurementError(
            f"{len(noisy)} of {len(results['measured'])} files were never measured undisturbed (rounds that agree "
            f"within {_MAX_SPREAD:.0%}, the uncompressed model below {limit:.3f} ms) in {_MAX_REPEATS} attempts, with "
            f"a load average of {_load():.1f}; run again on an idle machine to resume, or use them with --force"
        )


def _note(results: dict[str, Any], name: str, timing: PairedTiming) -> None:
    figures = results["measured"].setdefault(name, {"ratio": [], "spread": [], "reference_ms": []})
    figures["ratio"].append(round(timing.ratio, 6))
    figures["spread"].append(round(timing.spread / timing.ratio, 5))
    figures["reference_ms"].append(round(timing.reference_ms, 6))
    results["reference_ms"].append(round(timing.reference_ms, 6))


def clock_drift(results: Mapping[str, Any]) -> float:
    """Slowdown of the reference from the first to the last tenth of the measurements, as a share."""
    reference = results["reference_ms"]
    n = max(1, len(reference) // 10)
    return float(np.median(reference[-n:]) / np.median(reference[:n]) - 1) if reference else 0.0


def drift_warning(drift: float) -> list[str]:
    """One line where the clock drifted by more than 10 %, else none."""
    if abs(drift) <= _WORTH_MENTIONING:
        return []
    return [f"the device's clock drifted by {drift:+.0%}: ratios hold, milliseconds may not"]


def repeatability(results: Mapping[str, Any]) -> float:
    """Median relative standard deviation of files with two or more undisturbed measurements, as a share; else NaN."""
    limit = undisturbed_limit(results)
    deviations = []
    for figures in results["measured"].values():
        kept = _undisturbed_ratios(figures, limit)
        if len(kept) > 1:
            deviations.append(np.std(kept, ddof=1) / np.mean(kept))
    return float(np.median(deviations)) if deviations else float("nan")


# ------------------------------------------------------------------------------------------------------------ runtimes


def runtime_version(runtime: str) -> str:
    """Version of an inference engine.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return str(importlib.import_module(runtime.partition("-")[0]).__version__).split("-")[0]
    except ImportError as error:
        raise MissingExtraError(f"the runtime {runtime!r} must be installed here: pip install {runtime}") from error


def open_session(runtime: str, file: Path, n_threads: int) -> Run:
    """Loads a file as the runtimes of a search do, with random inputs of its shapes.

    Raises:
        InputError: a runtime that cannot run without torch.
    """
    if runtime not in _OPENERS:
        raise InputError(f"the runtime must be one of {sorted(_OPENERS)} to be profiled alone, but got {runtime!r}")
    return _OPENERS[runtime](file, n_threads)


def _open_onnxruntime(file: Path, n_threads: int, provider: str = "CPUExecutionProvider") -> Run:
    import onnxruntime as ort

    if provider not in ort.get_available_providers():
        raise MissingExtraError(
            f"this installation of ONNX Runtime must have {provider}, but has {ort.get_available_providers()}; install "
            "its build for that device"
        )

    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = list(dict.fromkeys([provider, "CPUExecutionProvider"]))
    session = ort.InferenceSession(str(file), options, providers=providers)
    feed = {item.name: _made_up(item.shape, item.type) for item in session.get_inputs()}
    return lambda: session.run(None, feed)


def _open_openvino(file: Path, n_threads: int) -> Run:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(str(file))
    noted = model.has_rt_info(["framework", PRECISION_NOTE])
    settings = {
        "INFERENCE_NUM_THREADS": n_threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": model.get_rt_info(["framework", PRECISION_NOTE]).astype(str) if noted else "f32",
    }
    compiled = core.compile_model(model, "CPU", settings)
    feed = {
        port.get_any_name(): ov.Tensor(_made_up(port.get_shape(), port.get_element_type().to_dtype().name))
        for port in compiled.inputs
    }
    request = compiled.create_infer_request()
    return lambda: request.infer(feed, share_inputs=True, share_outputs=True)


_OPENERS: dict[str, Callable[[Path, int], Run]] = {
    "onnxruntime": _open_onnxruntime,
    "onnxruntime-cuda": partial(_open_onnxruntime, provider="CUDAExecutionProvider"),
    "onnxruntime-tensorrt": partial(_open_onnxruntime, provider="TensorrtExecutionProvider"),
    "openvino": _open_openvino,
}


def _made_up(shape: Sequence[int], kind: str) -> np.ndarray[Any, Any]:
    """Normal random numbers, or ones where integers (which may be indices) are wanted."""
    for name in ("float16", "double", "float64", "float"):
        if name in kind:
            type_ = {"float16": np.float16, "float": np.float32}.get(name, np.float64)
            if kind == "float32":
                type_ = np.float32
            return np.random.default_rng(0).standard_normal(tuple(shape)).astype(type_)
    integer = next(name for name in ("int64", "int32", "uint8", "int8", "bool") if name in kind)
    return np.ones(tuple(shape), integer)


# --------------------------------------------------------------------------------------------------------------- files


def write_weights(folder: Path, plan: Mapping[str, Any]) -> None:
    """Makes the file of random weights that all files of the folder share, if it is not there.

    Latency does not depend on the values of weights, so the folder that a user copies need not hold them.
    """
    weights = plan.get("weights")
    if not weights:
        return
    file = folder / weights["file"]
    if file.is_file() and file.stat().st_size == weights["n_bytes"]:
        return
    values = np.random.default_rng(WEIGHTS_SEED).standard_normal(-(-weights["n_bytes"] // 4), dtype=np.float32)
    file.write_bytes((values * np.float32(0.05)).tobytes()[: weights["n_bytes"]])


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes one entry a line; a crash leaves the old file."""
    write_atomically(path, json.dumps(data, indent=1) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def main(argv: Sequence[str] | None = None) -> int:
    """The script of a bundle; returns the exit code."""
    parser = argparse.ArgumentParser(description="Times the files of this folder on this device.")
    here = Path(sys.argv[0]).resolve().parent
    parser.add_argument("--folder", type=Path, default=here, help="with plan.json (default: where this script is)")
    parser.add_argument("-o", "--output", type=Path, help=f"result to copy back (default: {MEASURED} in the folder)")
    parser.add_argument("--passes", type=int, default=1, help="how often each file is measured (default: 1)")
    parser.add_argument("--seconds", type=float, help="stop after this time; run again to resume")
    parser.add_argument("--force", action="store_true", help="measure on a noisy machine too")
    args = parser.parse_args(argv)
    output = args.output or args.folder / MEASURED
    try:
        settings = MeasureSettings(args.passes, seconds=args.seconds, force=args.force)
        results = measure_folder(args.folder, output, settings, listener=show_progress)
    except AutocompressError as error:
        print(f"\nprofile: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nprofile: stopped; run again to resume", file=sys.stderr)
        return 130
    print(f"\n{summary(results)}\n{output}")
    return 0


def show_progress(n_done: int, n_all: int, seconds_left: float) -> None:
    """Redraws one line in the terminal."""
    filled = 30 * n_done // n_all
    bar = "█" * filled + "░" * (30 - filled)
    print(f"\r{bar} {n_done}/{n_all} files, {seconds_left:.0f} s left ", end="", file=sys.stderr, flush=True)


def summary(results: Mapping[str, Any]) -> str:
    """What was measured, how repeatable it is, and whether the clock drifted."""
    reference = float(np.median(results["reference_ms"])) if results["reference_ms"] else float("nan")
    lines = [
        f"{len(results['measured'])} files on {results['runtime']} {results['version']}, {results['n_threads']} "
        f"thread(s), {results['device']['cpu']}; uncompressed {reference:.3f} ms"
    ]
    if not np.isnan(repeatability(results)):
        lines.append(f"repeatability {repeatability(results):.1%}")
    lines += drift_warning(clock_drift(results))
    if not results.get("complete"):
        lines.append("not complete: run again to resume")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
