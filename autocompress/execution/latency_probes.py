"""A few untrained candidates that are timed before anything is planned: they teach the latency model what pays here."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autocompress.compression import compress
from autocompress.errors import AutocompressError, InputError
from autocompress.files import read_json, write_atomically
from autocompress.latency.target_device import TargetDevice
from autocompress.runtimes import export_for, runtime_named
from autocompress.search_context import SearchContext
from autocompress.space.candidate import FULL_BITS, INT8_BITS, Candidate
from autocompress.space.search_space import Choice, SearchSpace
from autocompress.task_access import calibration_of, examples_of

SHARE = 0.05
"""Of a search's minutes, at most."""

_N_ROUNDS = 5
_HALF = 0.5


@dataclass(frozen=True)
class LatencyProbe:
    """A candidate and its measured latency as a ratio to the uncompressed model's."""

    candidate: Candidate
    ratio: float


def probe_candidates(space: SearchSpace) -> list[Candidate]:
    """Each kind of choice alone and with 8 bits, and 8 bits on every second layer: what latencies depend on."""
    drops = [knob.name for knob in space.knobs if knob.kind == "drop"]
    layers = [knob for knob in space.knobs if knob.kind == "weight_bits"]
    half_dropped: dict[str, Choice] = dict.fromkeys(drops[1::2], True)
    integer: dict[str, Choice] = {knob.name: knob.nearest(INT8_BITS) for knob in layers}
    mixed = {knob.name: integer[knob.name] for knob in layers[::2]}
    found = [
        space.candidate(mixed),
        space.uniform(rank_ratio=_HALF),
        space.uniform(prune_ratio=_HALF, weight_bits=INT8_BITS),
        space.candidate({**integer, **half_dropped}),
        space.uniform(rank_ratio=_HALF, weight_bits=INT8_BITS),
        space.uniform(prune_ratio=_HALF, weight_bits=FULL_BITS),
    ]
    return list({candidate.digest: candidate for candidate in found if not candidate.is_baseline}.values())


def measure_latency_probes(
    context: SearchContext,
    space: SearchSpace,
    device: TargetDevice,
    seconds: float | None,
    on_probe: Callable[[int, int], None] = lambda n_done, n_all: None,
) -> Iterator[LatencyProbe]:
    """Times the probes, without refitting or training: neither changes what a file takes.

    One that cannot be built or written is left out.

    Args:
        context: of the search.
        space: of the search.
        device: where files are timed.
        seconds: after which no further probe begins; None times all.
        on_probe: called with how many of how many were timed, after each.
    """
    begin = time.monotonic()
    candidates = probe_candidates(space)
    runtime, inputs = runtime_named(context.settings.runtime), examples_of(context.task)
    calibration = [next(calibration_of(context.task))]
    with tempfile.TemporaryDirectory(prefix="autocompress-") as name:
        folder = Path(name)
        reference_file = folder / "reference"
        reference_file.write_bytes(context.reference)
        reference = device.load(reference_file)
        for i, candidate in enumerate(candidates):
            if seconds is not None and time.monotonic() - begin > seconds:
                return
            try:
                student = compress(
                    context.model, candidate, inputs, calibration, graph=context.graph, reconstruct=False
                )
                session = device.load(export_for(context.task, runtime, student, inputs, folder))
            except AutocompressError:
                continue
            yield LatencyProbe(candidate, device.time(session, reference, inputs, _N_ROUNDS).ratio)
            on_probe(i + 1, len(candidates))


def write_latency_probes(path: Path, probes: list[LatencyProbe]) -> None:
    """Keeps the probes, so that a resumed search plans with the same latency model."""
    rows = [{"candidate": probe.candidate.to_dict(), "ratio": probe.ratio} for probe in probes]
    write_atomically(path, json.dumps({"probes": rows}, indent=1))


def read_latency_probes(path: Path) -> list[LatencyProbe]:
    """The inverse of `write_latency_probes`; empty where there is no file.

    Raises:
        InputError: the file is damaged.
    """
    if not path.is_file():
        return []
    try:
        rows = read_json(path, "latency probes")["probes"]
        return [LatencyProbe(Candidate.from_dict(row["candidate"]), float(row["ratio"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error!r}; remove it, and the search continues without it") from error
