"""Measures the latency of exported files on this machine, alone or paired with a reference."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from autocompress.errors import InputError
from autocompress.latency.clock import PairedTiming, time_pair, timer_of
from autocompress.latency.measurement_lock import MeasurementLock
from autocompress.runtimes import Session, runtime_named
from autocompress.settings_schema import require_count, require_kind
from autocompress.task import Inputs, as_inputs

_BUSY = 1.1  # the reference may be this much slower than on the idle machine
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
    """Milliseconds of one inference of an exported file, under the exclusive measurement lock.

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
    """Latency of one exported file as a ratio to another's, in alternating rounds, under the exclusive lock.

    Raises:
        ExportError: the runtime refuses a file.
        InputError: a file is missing, or the inputs are not of the files' shapes.
    """
    require_count("n_threads", n_threads)
    require_count("n_rounds", n_rounds)
    inputs = as_inputs(example_inputs)
    target = runtime_named(runtime)
    for path in (file, reference):
        require_kind("a file", path, "a path", str, Path)
        if not Path(path).exists():
            raise InputError(f"the exported file must exist, but there is no {path}")
    loaded = [target.load(Path(path), n_threads) for path in (file, reference)]
    return time_sessions(loaded[0], loaded[1], inputs, n_rounds)


def time_sessions(
    candidate: Session,
    reference: Session,
    inputs: Inputs,
    n_rounds: int = 9,
    measurement_lock: MeasurementLock | None = None,
    idle_ms: float | None = None,
) -> PairedTiming:
    """As `measure_paired`, for files that are loaded already.

    A busy neighbour on the same physical core slows integer kernels more than float ones, so a ratio that was measured
    on a busy machine is wrong whatever the number of rounds. While the reference runs slower than on the idle machine,
    the measurement is repeated; the one with the fastest reference counts.

    Args:
        candidate: what is timed.
        reference: what it is paired with.
        inputs: of the exported shapes.
        n_rounds: see `time_pair`.
        measurement_lock: counts the time spent waiting.
        idle_ms: the reference's latency on the idle machine, milliseconds; None measures once.

    Raises:
        InputError: the inputs are not of the files' shapes.
    """
    fed, reference_fed = candidate.prepare(inputs), reference.prepare(inputs)
    timings: list[PairedTiming] = []
    while len(timings) < (1 if idle_ms is None else _MAX_REPEATS):
        with (measurement_lock or MeasurementLock()).exclusive():
            runs = (lambda: candidate.run(fed)), (lambda: reference.run(reference_fed))
            timings.append(time_pair(*runs, n_rounds, timer_of(candidate)))
        if idle_ms is not None and timings[-1].reference_ms <= _BUSY * idle_ms:
            break
    return min(timings, key=lambda timing: timing.reference_ms)
