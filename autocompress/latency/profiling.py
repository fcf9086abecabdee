"""Makes a latency model: writes the files to time, times them here or reads a device's measurements, and fits."""

from __future__ import annotations

import json
import zipapp
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import InputError
from autocompress.files import digest_of, read_json
from autocompress.latency.candidate_encoder import ModelShape
from autocompress.latency.device_files import read_plan, read_results
from autocompress.latency.measurement_lock import MeasurementLock
from autocompress.latency.model import LatencyModel
from autocompress.latency.on_device import (
    MEASURED,
    PLAN,
    MeasureSettings,
    clock_drift,
    converged,
    measure_folder,
    repeatability,
    runtime_version,
    show_progress,
    write_json,
)
from autocompress.latency.plan import N_CANDIDATES, PlanSettings, batch_size, write_plan
from autocompress.latency.schema import DamageError, check_positive, check_type
from autocompress.latency.table import Table, shape_of
from autocompress.locked_temp_dir import LockedTempDir
from autocompress.machine import describe_machine
from autocompress.settings_schema import shown
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.task import Task, as_inputs, load_task
from autocompress.tasks.data import cache_folder

_SUSPICIOUS = 0.3


class LayerStore:
    """Milliseconds of layers alone, in one small JSON file for each device, runtime, version, thread count and batch.

    Args:
        key: everything but the layer that the times depend on.
        folder: for the files; None is the cache folder.
    """

    def __init__(self, key: Mapping[str, Any], folder: Path | None = None) -> None:
        self._key = dict(key)
        digest = digest_of(json.dumps(self._key, sort_keys=True), 16)
        self._file = (folder or cache_folder() / "layer_times") / f"{digest}.json"

    @classmethod
    def of_this_machine(cls, runtime: str, n_threads: int, batch: int, folder: Path | None = None) -> LayerStore:
        """The store of what is measured here."""
        key = {"runtime": runtime, "version": runtime_version(runtime), "n_threads": n_threads, "batch": batch}
        return cls({**key, "device": describe_machine()["cpu"]}, folder)

    def times(self) -> dict[str, float]:
        """Key of a layer -> milliseconds; empty where nothing was measured yet.

        Raises:
            InputError: the file is damaged; names the line and the file, which can be deleted.
        """
        if not self._file.is_file():
            return {}
        try:
            data = read_json(self._file)
            check_type(Mapping[str, float], data.get("ms"), ("ms",))
            for key, value in data["ms"].items():
                check_positive(value, ("ms", key))
        except DamageError as damage:
            raise InputError(f"{damage.at_line(self._file)}; or delete it") from damage
        return dict(data["ms"])

    def add(self, times: Mapping[str, float]) -> None:
        """Stores new times in milliseconds; they replace older ones."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        rounded = {key: float(f"{ms:.5g}") for key, ms in times.items()}
        write_json(self._file, {**self._key, "ms": {**self.times(), **rounded}})


def reused_times(stored: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """Stored times of layers that were not timed now, at the speed that the device has now.

    Layers that were timed both then and now are the repeated reference: the median of their ratios scales the others.
    Nothing is reused where the median is off by more than 30 %, or no layer was timed twice.

    Args:
        stored: key -> milliseconds then.
        now: key -> milliseconds now.
    """
    ratios = [now[key] / stored[key] for key in stored.keys() & now.keys()]
    if not ratios or abs(float(np.median(ratios)) - 1) > _SUSPICIOUS:
        return {}
    scale = float(np.median(ratios))
    return {key: ms * scale for key, ms in stored.items() if key not in now}


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
        task: the task, or the text that names it.
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
    check_numbers(n_candidates, n_threads, n_passes, batch)
    loaded = load_task(task) if isinstance(task, str) else task
    with LockedTempDir() as scratch:
        place = Path(folder) if folder is not None else scratch.path
        n_samples = batch_size(as_inputs(loaded.example_inputs())) if batch is None else batch
        store = LayerStore.of_this_machine(runtime, n_threads, n_samples)
        stored = _known_at_start(place, store.times() if reuse else {})
        plan = write_plan(
            loaded,
            space,
            place,
            PlanSettings(runtime, n_threads, n_candidates, batch, seed),
            known=list(stored),
            listener=_show_written if show else None,
        )
        with MeasurementLock().exclusive():
            results = measure_folder(
                place,
                place / MEASURED,
                MeasureSettings(n_passes, force=force),
                listener=show_progress if show else None,
            )
    model = model_of(plan, results, stored)
    store.add({key: ratio * model.baseline_ms for key, ratio in model.table.pieces.items() if key in plan["pieces"]})
    return model


def check_numbers(n_candidates: int, n_threads: int, n_passes: int = 1, batch: int | None = None) -> None:
    """Refuses what no profile can be made of, before anything is timed.

    Raises:
        InputError: a number is too small; says the rule.
    """
    rules = (("n_candidates", n_candidates, _FEWEST), ("n_threads", n_threads, 1), ("n_passes", n_passes, 1))
    for name, value, least in (*rules, ("batch", 1 if batch is None else batch, 1)):
        if type(value) is not int or value < least:
            raise InputError(f"`{name} >= {least}` must hold and be whole, but got {shown(value)}")


def _known_at_start(folder: Path, stored: dict[str, float]) -> dict[str, float]:
    """The stored times when the profile in this folder began; a resumed profile uses the same ones."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _KNOWN
    if not file.is_file():
        write_json(file, {"ms": stored})
    known = read_json(file).get("ms")
    if not isinstance(known, dict) or not all(type(ms) in (int, float) and 0 < ms < np.inf for ms in known.values()):
        raise InputError(f"{file} is damaged: it must have milliseconds of layers; remove the folder")
    return known


def write_bundle(
    task: Task | str,
    space: str | SearchSpace,
    folder: str | Path,
    settings: PlanSettings = PlanSettings(),
    *,
    show: bool = False,
) -> Path:
    """Writes a folder that a device without torch measures; returns the path of its script.

    Args:
        task: the task, or the text that names it.
        space: whose candidates are to be predicted.
        folder: made if missing.
        settings: how the device is to be profiled.
        show: draw progress in the terminal.
    """
    check_numbers(settings.n_candidates, settings.n_threads, batch=settings.batch)
    loaded = load_task(task) if isinstance(task, str) else task
    write_plan(loaded, space, Path(folder), settings, listener=_show_written if show else None)
    return write_script(Path(folder))


def model_of(
    plan: Mapping[str, Any], results: Mapping[str, Any], stored: Mapping[str, float] | None = None
) -> LatencyModel:
    """The latency model of a plan and a device's measurements.

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
        **{key: plan[key] for key in ("runtime", "n_threads", "batch")},
        "task": str(plan.get("task")),
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
    return LatencyModel(Table(head, baseline_ms, shape_in(plan), pieces, candidates))


def shape_in(plan: Mapping[str, Any]) -> ModelShape:
    """The model's shape in a plan.

    Raises:
        DamageError: it is none.
    """
    check_type(ModelShape, plan.get("shape"), ("shape",))
    return shape_of(plan["shape"])


def profile_of(folder: str | Path, measured: str | Path) -> LatencyModel:
    """The latency model of a bundle and the JSON that the device wrote."""
    try:
        results = read_results(Path(measured))
        return model_of(read_plan(Path(folder) / PLAN), results)
    except DamageError as damage:
        raise InputError(f"{folder} is damaged: its plan {damage.rule}; write it again") from damage


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 5)


def _show_written(n_done: int, n_all: int) -> None:
    print(f"\rwriting files: {n_done}/{n_all} ", end="", flush=True)


SCRIPT = "profile_device.pyz"
_MODULES = (
    "__init__.py",
    "errors.py",
    "files.py",
    "machine.py",
    "latency/clock.py",
    "latency/device_files.py",
    "latency/on_device.py",
)


def write_script(folder: Path) -> Path:
    """Zips the modules that measure into one script; returns its path."""
    package = Path(__file__).parent.parent
    with LockedTempDir() as temp_dir:
        scratch = temp_dir.path / "script"
        for name in _MODULES:
            target = scratch / "autocompress" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text((package / name).read_text(encoding="utf-8"), encoding="utf-8")
        (scratch / "autocompress" / "latency" / "__init__.py").touch()
        script = folder / SCRIPT
        zipapp.create_archive(
            scratch, script, interpreter="/usr/bin/env python3", main="autocompress.latency.on_device:main"
        )
    return script
