"""Makes a latency model: writes the files to time, times them here or reads a device's measurements, and fits."""

from __future__ import annotations

import tempfile
import zipapp
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import InputError
from autocompress.files import read_json
from autocompress.latency.candidate_encoder import ModelShape
from autocompress.latency.layer_cache import LayerStore, reused_times
from autocompress.latency.measurement_lock import MeasurementLock
from autocompress.latency.model import LatencyModel
from autocompress.latency.on_device import (
    MEASURED,
    clock_drift,
    converged,
    measure_folder,
    repeatability,
    show_progress,
    write_json,
)
from autocompress.latency.plan import N_CANDIDATES, batch_size, write_plan
from autocompress.latency.table import Table
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.task import Task, load_task
from autocompress.task_access import examples_of

_FEWEST = 12
_KNOWN = "known.json"


def profile(
    task: Task | str,
    space: str | SearchSpace = "default",
    *,
    runtime: str = "onnxruntime",
    n_threads: int = 1,
    n_candidates: int = N_CANDIDATES,
    batch: int | None = None,
    n_passes: int = 1,
    folder: str | Path | None = None,
    seed: int = 0,
    force: bool = False,
    reuse: bool = True,
    show: bool = False,
) -> LatencyModel:
    """Times a model's layers and whole candidates on this machine, and fits a latency model to them.

    Args:
        task: what is compressed, or the text that names it.
        space: whose candidates are to be predicted.
        runtime: name of the target runtime.
        n_threads: that the runtime may use.
        n_candidates: whole candidates to calibrate on.
        batch: samples in one inference; None is the batch of the task's example inputs.
        n_passes: how often each file is timed; two show how repeatable a measurement is.
        folder: for the files and the measurements; an interrupted profile resumes from them. None is a
            temporary one.
        seed: of the candidates.
        force: measure on a noisy machine too.
        reuse: layers that an earlier profile timed on this device, of whatever model, are not timed again.
        show: draw progress in the terminal.

    Raises:
        MeasurementError: the machine is too noisy.
        InputError: too few candidates, or the folder is of another profile.
    """
    loaded = load_task(task) if isinstance(task, str) else task
    with tempfile.TemporaryDirectory(prefix="autocompress-") as scratch:
        place = Path(folder) if folder is not None else Path(scratch)
        n_samples = batch_size(examples_of(loaded)) if batch is None else batch
        store = LayerStore.of_this_machine(runtime, n_threads, n_samples)
        stored = _known_at_start(place, store.times() if reuse else {})
        plan = write_plan(
            loaded,
            space,
            place,
            runtime=runtime,
            n_threads=n_threads,
            n_candidates=n_candidates,
            batch=batch,
            seed=seed,
            known=list(stored),
            listener=_show_written if show else None,
        )
        with MeasurementLock().exclusive():
            results = measure_folder(
                place,
                place / MEASURED,
                n_passes=n_passes,
                force=force,
                listener=show_progress if show else None,
            )
    model = model_of(plan, results, stored)
    store.add({key: ratio * model.baseline_ms for key, ratio in model.table.pieces.items() if key in plan["pieces"]})
    return model


def _known_at_start(folder: Path, stored: dict[str, float]) -> dict[str, float]:
    """The stored times when the profile in this folder began; a resumed profile uses the same ones."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _KNOWN
    if not file.is_file():
        write_json(file, {"ms": stored})
    return dict(read_json(file)["ms"])


def write_bundle(
    task: Task | str, space: str | SearchSpace, folder: str | Path, *, show: bool = False, **plan: Any
) -> Path:
    """Writes a folder that a device without torch measures; returns the path of its script.

    Args:
        task: what is compressed, or the text that names it.
        space: whose candidates are to be predicted.
        folder: made if missing.
        show: draw progress in the terminal.
        plan: further arguments of `write_plan`.
    """
    loaded = load_task(task) if isinstance(task, str) else task
    write_plan(loaded, space, Path(folder), listener=_show_written if show else None, **plan)
    return write_script(Path(folder))


def model_of(
    plan: Mapping[str, Any], results: Mapping[str, Any], stored: Mapping[str, float] | None = None
) -> LatencyModel:
    """The latency model of a plan and what a device measured of it.

    Args:
        plan: as in `plan.json`.
        results: as the device wrote them.
        stored: key of a layer -> milliseconds on this device at an earlier time, see `LayerStore`.

    Raises:
        InputError: the results are of another plan, or too few candidates were measured.
    """
    if results.get("plan") != plan["digest"]:
        raise InputError(f"the results are of plan {results.get('plan')!r}, but this is plan {plan['digest']!r}")
    ratios = converged(results)
    candidates = tuple(
        (Candidate.from_dict(asked), ratios[file]) for file, asked in plan["candidates"].items() if file in ratios
    )
    if len(candidates) < _FEWEST:
        raise InputError(f"at least {_FEWEST} candidates must be measured, but got {len(candidates)}; measure more")
    head = {
        **{key: plan[key] for key in ("task", "runtime", "n_threads", "batch")},
        "version": results["version"],
        "device": results["device"],
        "date": results.get("finished", results["started"]),
        "repeatability": _or_none(repeatability(results)),
        "clock_drift": round(clock_drift(results), 4),
    }
    pieces = {key: ratios[file] for key, file in plan["pieces"].items() if file in ratios}
    baseline_ms = float(np.median(results["reference_ms"]))
    earlier = reused_times(stored or {}, {key: ratio * baseline_ms for key, ratio in pieces.items()})
    pieces |= {key: ms / baseline_ms for key, ms in earlier.items()}
    return LatencyModel(Table(head, baseline_ms, ModelShape.from_dict(plan["shape"]), pieces, candidates))


def profile_of(folder: str | Path, measured: str | Path) -> LatencyModel:
    """The latency model of a bundle and the JSON that the device wrote."""
    return model_of(read_json(Path(folder) / "plan.json"), read_json(Path(measured)))


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 5)


def _show_written(n_done: int, n_all: int) -> None:
    print(f"\rwriting files: {n_done}/{n_all} ", end="", flush=True)


SCRIPT = "profile_device.pyz"
_MODULES = ("__init__.py", "errors.py", "files.py", "machine.py", "latency/clock.py", "latency/on_device.py")


def write_script(folder: Path) -> Path:
    """Zips the modules that measure into one script; returns its path."""
    package = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as scratch:
        for name in _MODULES:
            target = Path(scratch) / "autocompress" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text((package / name).read_text(encoding="utf-8"), encoding="utf-8")
        (Path(scratch) / "autocompress" / "latency" / "__init__.py").touch()
        script = folder / SCRIPT
        zipapp.create_archive(
            scratch, script, interpreter="/usr/bin/env python3", main="autocompress.latency.on_device:main"
        )
    return script
