"""Where the time of one run goes: milliseconds of each node of a file, from the runtime's own profiler.

Node names of exported files begin with the path of the module that they come from (see `module_of`), so that nodes can
be told apart by layer. A profiler adds a microsecond or two to each node, which for small models is as much as the node
itself: the excess of their sum over the latency of an unprofiled run is subtracted from all of them in equal parts.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from autocompress.latency.measurement_lock import MeasurementLock
from autocompress.locked_temp_dir import LockedTempDir
from autocompress.results.node_times import LayerTimes, NodeTime
from autocompress.runtimes import runtime_named
from autocompress.runtimes.node_names import module_of, modules_of_values
from autocompress.task import Inputs

_WARM_UP_RUNS = 5
_SECONDS = 1.5
_MAX_RUNS = 60  # where each run leaves events of its own, which a file takes
_KERNEL = "_kernel_time"
_BLOCKED = "_nchwc"  # ONNX Runtime names a layer in its blocked memory layout after its output


def measure_layer_times(file: Path, inputs: Inputs, runtime: str, n_threads: int = 1) -> LayerTimes | None:
    """Profiles an exported file, under the exclusive measurement lock; None where the runtime has no profiler here.

    Args:
        file: of the runtime.
        inputs: of the exported shapes.
        runtime: name of the runtime, see `PROFILERS`.
        n_threads: threads the runtime may use.
    """
    profiler = PROFILERS.get(runtime)
    if profiler is None:
        return None
    session = runtime_named(runtime).load(file, n_threads)
    fed = session.prepare(inputs)
    with MeasurementLock().exclusive():
        n_runs, nodes = profiler(file, inputs, n_threads)
        run_ms = _run_ms(lambda: session.run(fed))
    return LayerTimes(runtime, n_runs, run_ms, sum(node.ms for node in nodes), _without_profiler(nodes, run_ms))


def _without_profiler(nodes: list[NodeTime], run_ms: float) -> tuple[NodeTime, ...]:
    """The nodes with an equal share of the excess over `run_ms` taken off each; they then sum to `run_ms`."""
    each = max(0.0, sum(node.ms for node in nodes) - run_ms) / max(1, len(nodes))
    left = [max(0.0, node.ms - each) for node in nodes]
    factor = run_ms / sum(left) if sum(left) > 0 else 0.0
    return tuple(replace(node, ms=ms * factor) for node, ms in zip(nodes, left, strict=True))


def _profile_onnxruntime(
    file: Path, inputs: Inputs, n_threads: int, provider: str = "CPUExecutionProvider"
) -> tuple[int, list[NodeTime]]:
    import onnxruntime as ort

    from autocompress.runtimes.onnxruntime_backend import CpuSession, session_options

    options = session_options(n_threads)
    options.enable_profiling = True
    with LockedTempDir() as scratch:
        options.profile_file_prefix = str(scratch.path / "profile")
        providers = list(dict.fromkeys([provider, "CPUExecutionProvider"]))
        session = ort.InferenceSession(str(file), options, providers=providers)
        feed = CpuSession(session).prepare(inputs)
        n_runs = _repeat(lambda: session.run(None, feed), _MAX_RUNS)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    modules = modules_of_values(file)
    timings: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            name = event["name"].removesuffix(_KERNEL)
            path = module_of(name) or modules.get(name.removesuffix(_BLOCKED), "")
            timings[name, path, event["args"]["op_name"]].append(event["dur"] / 1e3)
    return n_runs, [NodeTime(path, op, _mean(values)) for (_, path, op), values in timings.items()]


def _profile_openvino(file: Path, inputs: Inputs, n_threads: int) -> tuple[int, list[NodeTime]]:
    from autocompress.runtimes.openvino_backend import CompiledSession, compile_file

    session = CompiledSession(compile_file(file, n_threads, PERF_COUNT=True))
    fed = session.prepare(inputs)
    # its counters hold the mean since the start: many runs make the first one, which is slow, count for little
    n_runs = _repeat(lambda: session.run(fed))
    executed = [item for item in session.node_times() if item.real_time]
    return n_runs, [
        NodeTime(module_of(item.node_name), item.node_type, item.real_time.total_seconds() * 1e3) for item in executed
    ]


def _profile_torch_cuda(file: Path, inputs: Inputs, n_threads: int) -> tuple[int, list[NodeTime]]:
    """By PyTorch's profiler: the kernels on the device, which know of no modules."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    session = runtime_named("torch-cuda").load(file, n_threads)
    fed = session.prepare(inputs)
    _repeat(lambda: session.run(fed), _WARM_UP_RUNS + 2)
    with watch(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as watched:
        n_runs = _repeat(lambda: session.run(fed), _MAX_RUNS)
    kernels = [event for event in watched.key_averages() if event.device_type.name == "CUDA"]
    return n_runs, [NodeTime("", event.key, event.self_device_time_total / 1e3 / n_runs) for event in kernels]


def _repeat(run: Callable[[], object], most: float = float("inf")) -> int:
    """Runs for a while, after a few runs to warm up; returns the number of all runs, `most` at most."""
    n_runs, end = 0, time.perf_counter() + _SECONDS
    while n_runs < _WARM_UP_RUNS + 2 or (n_runs < most and time.perf_counter() < end):
        run()
        n_runs += 1
    return n_runs


def _run_ms(run: Callable[[], object]) -> float:
    timings: list[float] = []
    end = time.perf_counter() + _SECONDS / 2
    while len(timings) < _WARM_UP_RUNS + 2 or time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        timings.append(time.perf_counter() - begin)
    return float(np.median(timings)) * 1e3


def _mean(values: list[float]) -> float:
    """Mean between the 10th and the 90th percentile, without the first runs, which warm up.

    Profilers count whole microseconds, too coarse for a median.
    """
    values = values[_WARM_UP_RUNS:] or values
    low, high = np.percentile(values, [10, 90])
    return float(np.mean([value for value in values if low <= value <= high]))


Profiler = Callable[[Path, Inputs, int], tuple[int, list[NodeTime]]]
PROFILERS: dict[str, Profiler] = {
    "onnxruntime": _profile_onnxruntime,
    "onnxruntime-cuda": partial(_profile_onnxruntime, provider="CUDAExecutionProvider"),
    "openvino": _profile_openvino,
    "torch-cuda": _profile_torch_cuda,
}
"""Name of a runtime -> its profiler."""
