"""Where the time of one run goes: milliseconds of each node of a file, from the runtime's own profiler.

Node names of exported files begin with the path of the module that they come from (see `module_of`), so that nodes can
be told apart by layer. A profiler adds a microsecond or two to each node, which for small models is as much as the node
itself: what the nodes sum to beyond the latency of an unwatched run is taken off all of them alike.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from autocompress.errors import InputError
from autocompress.latency.turns import Turns
from autocompress.runtimes import runtime_named
from autocompress.runtimes.node_names import module_of, modules_of_values
from autocompress.task import Inputs

SCHEMA_VERSION = 1
_WARM_UP_RUNS = 5
_MAX_RUNS, _SECONDS = 60, 1.5
_KERNEL = "_kernel_time"
_BLOCKED = "_nchwc"  # ONNX Runtime names a layer in its blocked memory layout after its output


@dataclass(frozen=True)
class NodeTime:
    """One node of a file as the runtime runs it, after its own fusions.

    Attributes:
        path: the module that the node comes from; "" for nodes that the runtime put in.
        op: the kernel's name in the runtime, such as "Conv" or "QLinearConv".
        ms: milliseconds in one run.
    """

    path: str
    op: str
    ms: float


@dataclass(frozen=True)
class LayerTimes:
    """Where the time of one run goes.

    Attributes:
        runtime: its name.
        n_runs: profiled runs.
        run_ms: median latency of an unwatched run; what the nodes sum to.
        profiled_ms: what the nodes summed to before the profiler's own cost was taken off.
        nodes: in the order in which they run.
    """

    runtime: str
    n_runs: int
    run_ms: float
    profiled_ms: float
    nodes: tuple[NodeTime, ...]

    def write(self, file: Path) -> None:
        """Writes JSON."""
        file.write_text(json.dumps({"schema": SCHEMA_VERSION, **asdict(self)}), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> LayerTimes:
        """The inverse of `write`.

        Raises:
            InputError: damaged, or of another schema version.
        """
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            schema = data.pop("schema")
            nodes = tuple(NodeTime(str(node["path"]), str(node["op"]), float(node["ms"])) for node in data.pop("nodes"))
            times = cls(nodes=nodes, **data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} must hold layer times, but: {error!r}") from error
        if schema != SCHEMA_VERSION:
            raise InputError(f"{file} has schema {schema!r}, but this version reads {SCHEMA_VERSION}")
        return times


def measure_layer_times(file: Path, inputs: Inputs, runtime: str, n_threads: int = 1) -> LayerTimes | None:
    """Profiles an exported file, in an exclusive turn at the cores; None where the runtime has no profiler here.

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
    with Turns().measure():
        n_runs, nodes = profiler(file, inputs, n_threads)
        run_ms = _run_ms(lambda: session.run(fed))
    return LayerTimes(runtime, n_runs, run_ms, sum(node.ms for node in nodes), _without_profiler(nodes, run_ms))


def _without_profiler(nodes: list[NodeTime], run_ms: float) -> tuple[NodeTime, ...]:
    """The nodes with an equal share of the excess over `run_ms` taken off each; they then sum to `run_ms`."""
    each = max(0.0, sum(node.ms for node in nodes) - run_ms) / max(1, len(nodes))
    left = [max(0.0, node.ms - each) for node in nodes]
    factor = run_ms / sum(left) if sum(left) > 0 else 0.0
    return tuple(replace(node, ms=ms * factor) for node, ms in zip(nodes, left, strict=True))


def _profile_onnxruntime(file: Path, inputs: Inputs, n_threads: int) -> tuple[int, list[NodeTime]]:
    import onnxruntime as ort

    from autocompress.runtimes.cpu_session import CpuSession, session_options

    options = session_options(n_threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        feed = CpuSession(session).prepare(inputs)
        n_runs = _repeat(lambda: session.run(None, feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    modules = modules_of_values(file)
    timings: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            name = event["name"].removesuffix(_KERNEL)
            path = module_of(name) or modules.get(name.removesuffix(_BLOCKED), "")
            timings[name, path, event["args"]["op_name"]].append(event["dur"] / 1e3)
    return n_runs, [NodeTime(path, op, _mean(values)) for (_, path, op), values in timings.items()]


def _repeat(run: Callable[[], object]) -> int:
    """Runs for a while, after a few runs to warm up; returns the number of all runs."""
    n_runs, end = 0, time.perf_counter() + _SECONDS
    while n_runs < _WARM_UP_RUNS + 2 or (n_runs < _MAX_RUNS and time.perf_counter() < end):
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
PROFILERS: dict[str, Profiler] = {"onnxruntime": _profile_onnxruntime}
"""Name of a runtime -> its profiler."""
