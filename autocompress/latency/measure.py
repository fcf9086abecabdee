"""Measures the latency of exported files on this machine, alone or paired with a reference."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from autocompress.latency.clock import PairedTiming, time_pair, timer_of
from autocompress.latency.measurement_lock import MeasurementLock
from autocompress.runtimes import Session, runtime_named
from autocompress.task import Inputs, as_inputs

_BUSY = 1.1  # the reference may be this much slower than on the quiet machine
_MAX_REPEATS = 4


@dataclass(frozen=True)
class Measurement:
    """One measured figure.

    Attributes:
        value, unit: for example 0.53 and "ms".
        spread: half the interquartile range over rounds, in the same unit.
        n_runs: timed runs behind it.
        device: what it was measured on.
    """

    value: float
    unit: str
    spread: float
    n_runs: int
    device: str


def measure_latency(
    file: str | Path, example_inputs: Inputs | Tensor, *, runtime: str = "onnxruntime", n_threads: int = 1
) -> Measurement:
    """Milliseconds of one inference of an exported file; waits for an exclusive turn at the cores.

    On a noisy machine compare two files by `measure_paired` instead: milliseconds drift, paired ratios hold.

    Raises:
        ExportError: the runtime refuses the file.
        InputError: the inputs are not of the file's shapes.
    """
    timing = measure_paired(file, file, example_inputs, runtime=runtime, n_threads=n_threads)
    spread = timing.spread * timing.candidate_ms
    return Measurement(timing.candidate_ms, "ms", spread, timing.n_runs, platform.processor() or platform.machine())


def measure_paired(
    file: str | Path,
    reference: str | Path,
    example_inputs: Inputs | Tensor,
    *,
    runtime: str = "onnxruntime",
    n_threads: int = 1,
    n_rounds: int = 9,
) -> PairedTiming:
    """Latency of one exported file as a ratio to another's, in alternating rounds; waits for an exclusive turn.

    Raises:
        ExportError: the runtime refuses a file.
        InputError: the inputs are not of the files' shapes.
    """
    inputs = as_inputs(example_inputs)
    target = runtime_named(runtime)
    loaded = [target.load(Path(path), n_threads) for path in (file, reference)]
    return time_sessions(loaded[0], loaded[1], inputs, n_rounds)


def time_sessions(
    candidate: Session,
    reference: Session,
    inputs: Inputs,
    n_rounds: int = 9,
    measurement_lock: MeasurementLock | None = None,
    quiet_ms: float | None = None,
) -> PairedTiming:
    """As `measure_paired`, for files that are loaded already.

    Integer kernels lose more than float ones to a busy neighbour on the same physical core, so a ratio taken on a busy
    machine is wrong however many rounds it has. The reference tells: while it runs slower than it does on the quiet
    machine, the measurement is repeated, and the quietest counts.

    Args:
        candidate: what is timed.
        reference: what it is paired with.
        inputs: of the exported shapes.
        n_rounds: see `time_pair`.
        measurement_lock: counts the time spent waiting.
        quiet_ms: the reference's latency on the quiet machine, milliseconds; None measures once.

    Raises:
        InputError: the inputs are not of the files' shapes.
    """
    fed, reference_fed = candidate.prepare(inputs), reference.prepare(inputs)
    timings: list[PairedTiming] = []
    while len(timings) < (1 if quiet_ms is None else _MAX_REPEATS):
        with (measurement_lock or MeasurementLock()).exclusive():
            runs = (lambda: candidate.run(fed)), (lambda: reference.run(reference_fed))
            timings.append(time_pair(*runs, n_rounds, timer_of(candidate)))
        if quiet_ms is not None and timings[-1].reference_ms <= _BUSY * quiet_ms:
            break
    return min(timings, key=lambda timing: timing.reference_ms)
