"""Latencies of files: known to be slower is measured slower, in milliseconds that a plain loop agrees with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from autocompress.errors import ExportError, InputError
from autocompress.latency import MeasurementLock, PairedTiming, measure, measure_latency, measure_paired, time_sessions
from autocompress.runtimes import runtime_named

WIDTH = 192
X = torch.ones(WIDTH, WIDTH)


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that runs on this machine at the same time does not hold these tests up."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def chain(folder: Path, n_products: int) -> Path:
    """A file that multiplies a number of matrices."""
    weight = numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32) * 0.5, "w")
    nodes = [helper.make_node("MatMul", [f"v{i}", "w"], [f"v{i + 1}"]) for i in range(n_products)]
    shape = [WIDTH, WIDTH]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("v0", f"v{n_products}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], [weight])
    file = folder / f"chain{n_products}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chain(tmp_path_factory.mktemp("files"), 1)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chain(tmp_path_factory.mktemp("files"), 6)


def test_six_products_take_six_times_as_long(short: Path, long: Path) -> None:
    timing = measure_paired(short, long, X, n_rounds=5)
    assert timing.ratio == pytest.approx(1 / 6, rel=0.5)
    assert timing.candidate_ms < timing.reference_ms
    assert timing.n_rounds == 5
    assert measure_paired(long, short, X, n_rounds=5).ratio == pytest.approx(6, rel=0.5)


def test_milliseconds_are_those_of_a_plain_loop(long: Path) -> None:
    measured = measure_latency(long, X)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(long), options, providers=["CPUExecutionProvider"])
    seconds = []
    for _ in range(40):
        begin = time.perf_counter()
        session.run(None, {"v0": X.numpy()})
        seconds.append(time.perf_counter() - begin)
    assert measured.unit == "ms"
    assert measured.value == pytest.approx(1e3 * statistics.median(seconds), rel=0.6)
    assert 0 <= measured.spread < measured.value
    assert measured.n_runs >= 9 * 5
    assert measured.device


class Watched(MeasurementLock):
    """Knows whether it is held for a measurement."""

    held = False

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with super().exclusive():
            self.held = True
            yield
            self.held = False


def test_every_timed_run_holds_the_exclusive_lock(short: Path, tmp_path: Path) -> None:
    session, measurement_lock = runtime_named("onnxruntime").load(short), Watched(tmp_path)
    seen: list[bool] = []
    run = session.run

    def watched(prepared: object) -> object:
        seen.append(measurement_lock.held)
        return run(prepared)

    session.run = watched  # type: ignore[method-assign]
    timing = time_sessions(session, session, (X,), 2, measurement_lock)
    assert len(seen) >= 4 * timing.n_runs
    assert all(seen)


def test_a_busy_machine_is_measured_again_and_the_fastest_reference_counts(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings = [PairedTiming(ratio, 0.01, ratio * ms, ms, 9, 90) for ratio, ms in ((0.7, 1.5), (0.6, 1.3), (0.5, 1.05))]
    given = iter(timings + timings)
    monkeypatch.setattr(measure, "time_pair", lambda *_: next(given))
    session = runtime_named("onnxruntime").load(short)
    assert time_sessions(session, session, (X,), idle_ms=1.0) is timings[2]
    assert time_sessions(session, session, (X,)) is timings[0], "without an idle figure there is one measurement"
    always_busy = iter([timings[0], timings[1], timings[0], timings[0]])
    monkeypatch.setattr(measure, "time_pair", lambda *_: next(always_busy))
    assert time_sessions(session, session, (X,), idle_ms=1.0) is timings[1]
    assert next(always_busy, None) is None


def test_bad_files_and_inputs(short: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    with pytest.raises(ExportError, match="broken.onnx"):
        measure_latency(broken, X)
    with pytest.raises(ExportError, match="broken.onnx"):
        measure_paired(short, broken, X)
    with pytest.raises(InputError, match="export again"):
        measure_latency(short, torch.ones(2, WIDTH))
    with pytest.raises(InputError, match="runtime must be one of"):
        measure_latency(short, X, runtime="tpu")
