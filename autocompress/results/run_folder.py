"""The folder of a search: where each file lies, and reading a run back as data.

run.json          RunInfo: settings, task, machine, versions, reference latency
study.journal     the study, the one source of truth
trials.jsonl      a TrialRecord per line, rewritten from the study on resume
states/           checkpoints of interrupted trials, by candidate; empty when the search is done
events.jsonl      what happened to each trial: a line per start, rung, restart and end
trials/           trial_0042/weights.safetensors and recipe.json of each trial that did not fail
front.csv         the front as a table
front/            trial_0042/: manifest.json, weights.safetensors, the runtime's file, layer_times.json, examples.npz,
                  run.py, README.md
front.json        the same table as JSON
sensitivity.json  what each single choice costs, where the search measured it
report.html       the report
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from autocompress.config import SearchSettings
from autocompress.declared_types import require_types
from autocompress.errors import InputError
from autocompress.files import check_new_folder, read_json, write_atomically
from autocompress.results.objectives import Objectives, budget_ratios
from autocompress.results.pareto import ParetoFront, front_of
from autocompress.results.records import TrialRecord, read_records
from autocompress.settings_schema import shown
from autocompress.space.rank_choice import RANK_GRID

SCHEMA_VERSION = 1
LAYER_TIMES = "layer_times.json"


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run besides its trials.

    Attributes:
        task: what the user typed for the task, or its class name when given from Python.
        task_spec: the text that loads the task again; None when it was given as an object.
        settings: of the search.
        model_digest, space_digest: of the uncompressed weights' shapes and names, and of the space's knobs.
        objectives: what is optimised, and its limits.
        layers: network order; path, kind, n_params, n_macs of each layer.
        knobs: names and choices of the space.
        frozen: name, what, reason of everything that is left as it is.
        machine, versions: of the driver.
        command: what was typed.
        started: ISO 8601 time of the first start.
        rank_grid: of the space; see `SearchSpace`.
        half_range_weights: see `Recipe`; the same in all trials of the run, on whatever machine it is resumed.
        n_selection: samples of the selection split.
        baseline_part: the uncompressed model's metrics on the part of the selection split that new candidates are
            judged on; empty where that is all of it.
        reference_digest: of `reference.file`; "" in runs of earlier versions.
        signature: see `provenance.signature_of`; "" in runs of earlier versions.
    """

    task: str
    task_spec: str | None
    settings: SearchSettings
    objectives: Objectives
    model_digest: str
    space_digest: str
    layers: tuple[Mapping[str, Any], ...] = ()
    knobs: tuple[Mapping[str, Any], ...] = ()
    frozen: tuple[Mapping[str, str], ...] = ()
    machine: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    started: str = ""
    rank_grid: int = RANK_GRID
    half_range_weights: bool = False
    n_selection: int = 0
    baseline_part: Mapping[str, float] = field(default_factory=dict)
    reference_digest: str = ""
    signature: str = ""


@dataclass(frozen=True)
class Run:
    """A run read back from its folder."""

    folder: RunFolder
    info: RunInfo
    records: tuple[TrialRecord, ...]
    front: ParetoFront


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

    path: Path

    @property
    def info(self) -> Path:
        """Settings and facts of the run."""
        return self.path / "run.json"

    @property
    def study(self) -> Path:
        """The study, the one source of truth."""
        return self.path / "study.journal"

    @property
    def records(self) -> Path:
        """A trial record per line."""
        return self.path / "trials.jsonl"

    @property
    def table(self) -> Path:
        """The front as a table."""
        return self.path / "front.csv"

    @property
    def table_json(self) -> Path:
        """The front as a table, with the meaning and unit of each column."""
        return self.path / "front.json"

    @property
    def sensitivity(self) -> Path:
        """What each single choice costs; not every search measures it."""
        return self.path / "sensitivity.json"

    @property
    def latency_probes(self) -> Path:
        """Untrained candidates that were timed before the search planned; not every search times any."""
        return self.path / "latency_probes.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    @property
    def front(self) -> Path:
        """A folder for each point of the front."""
        return self.path / "front"

    @property
    def peer(self) -> Path:
        """The file that the runtime's own tool makes, and its figures."""
        return self.path / "peer"

    @property
    def reference(self) -> Path:
        """The uncompressed model's file for the runtime."""
        return self.path / "reference.file"

    @property
    def states(self) -> Path:
        """Checkpoints of interrupted trials."""
        return self.path / "states"

    @property
    def events(self) -> Path:
        """An event per line."""
        return self.path / "events.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the driver."""
        return self.path / ".lock"

    def trial(self, name: str) -> Path:
        """Where the weights of a trial lie that did not fail."""
        return self.path / "trials" / name

    def made(self, path: Path) -> Path:
        """A folder inside the run's, which is made if missing; the run's own folder is not.

        Raises:
            FileNotFoundError: the run's folder is gone.
        """
        inside = path.relative_to(self.path)
        for part in (*reversed(inside.parents[:-1]), inside):
            (self.path / part).mkdir(exist_ok=True)
        return path

    def point(self, name: str) -> Path:
        """Where a front point's artifact lies."""
        return self.front / name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One driver a run; the kernel drops the lock of a killed one.

        Raises:
            InputError: another driver holds it; the message names its process and host.
        """
        with self.lock.open("a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"{self.path} is in use by another search ({self._noted_driver()}); wait for it, or stop it"
                ) from None
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {platform.node()}")
            lock.flush()
            yield

    def driver(self) -> str | None:
        """The process and host of the driver that holds the run at this moment; None when there is none."""
        if not self.lock.is_file():
            return None
        with self.lock.open(encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return self._noted_driver()
        return None

    def _noted_driver(self) -> str:
        return self.lock.read_text(encoding="utf-8") or "process unknown"

    def write_info(self, info: RunInfo) -> None:
        """Writes `run.json`."""
        data = asdict(replace(info, objectives=None))  # type: ignore[arg-type]  # written key by key
        del data["objectives"]
        text = json.dumps({"schema": SCHEMA_VERSION, **data, **_objectives_to_dict(info.objectives)}, indent=1)
        write_atomically(self.info, text)

    def read_info(self) -> RunInfo:
        """Reads `run.json`.

        Raises:
            InputError: missing, damaged, or of another schema.
        """
        if not self.info.is_file():
            raise InputError(f"a run folder holds run.json, but {self.path} does not; name the folder of a search")
        data = read_json(self.info, "run")
        if data.pop("schema", SCHEMA_VERSION) != SCHEMA_VERSION:
            raise InputError(f"{self.info} was written by another version; use that version to read it")
        try:
            data["settings"] = _settings_from_dict(data["settings"])
            data["objectives"] = _objectives_from_dict(data, data["settings"])
            for key in ("layers", "knobs", "frozen"):
                data[key] = tuple(data[key])
            info = RunInfo(**data)
            require_types(info, RunInfo)
            if info.started and datetime.fromisoformat(info.started).tzinfo is None:
                raise ValueError(f"the time of its start must have a zone, but is {shown(info.started)}")
        except InputError as error:
            raise InputError(f"{self.info}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{self.info} is damaged: {error}") from error
        return info

    def read(self) -> Run:
        """The whole run as data.

        Raises:
            InputError: not a run folder, or a damaged file.
        """
        info = self.read_info()
        records = read_records(self.records)
        self._require_metric(info.objectives.metric, records)
        return Run(self, info, tuple(records), front_of(records, info.objectives))

    def _require_metric(self, metric: str, records: list[TrialRecord]) -> None:
        """Refuses a metric that no trial has: the front would be empty."""
        points = [record for record in records if record.is_point]
        if points and not any(metric in record.metrics for record in points):
            known = sorted({name for record in points for name in record.metrics})
            raise InputError(
                f"{self.info} was edited: its metric {shown(metric)} is in no trial, they have {shown(known)}; "
                "restore the file"
            )


def check_output(output: Path) -> None:
    """Tries whether a model's folder can be made there.

    Raises:
        InputError: it exists, the system refuses it, or it would lie inside a run's own folder.
    """
    if output.exists():
        raise InputError(f"-o must name a new folder, but {output} exists")
    run = next((parent for parent in output.resolve().parents if (parent / "run.json").is_file()), None)
    if run is not None:
        raise InputError(f"-o must lie outside of runs, which keep their own files alone, but {output} is in {run}")
    check_new_folder(output)


def _settings_from_dict(data: object) -> SearchSettings:
    if not isinstance(data, Mapping):
        raise TypeError(f"its settings must be a mapping, but are {shown(data)}")
    return SearchSettings.from_dict(data)


def _objectives_to_dict(objectives: Objectives) -> dict[str, Any]:
    """What `run.json` holds of the objectives; the limits of size and memory are settings."""
    return {
        "metric": objectives.metric,
        "direction": objectives.direction,
        "further_metrics": dict(objectives.further),
        "reference_ms": objectives.reference_ms,
        "budget_ratio": objectives.budget,
        "min_score": objectives.metric_limit,
    }


def _objectives_from_dict(data: dict[str, Any], settings: SearchSettings) -> Objectives:
    """Takes the objectives' keys out of `run.json`; runs from before metrics had a direction maximise."""
    reference_ms = data.pop("reference_ms")
    data.pop("budget_ratio")
    if type(reference_ms) not in (int, float) or not 0 < reference_ms < math.inf:
        raise ValueError(f"`0 < reference_ms` must hold and be finite, but got {shown(reference_ms)}")
    return Objectives(
        metric=data.pop("metric"),
        direction=data.pop("direction", "maximize"),
        reference_ms=reference_ms,
        latency_budgets=() if settings.latency_budget is None else budget_ratios(settings.latency_budget, reference_ms),
        metric_limit=data.pop("min_score", None),
        max_size_mib=settings.size_budget_mib,
        max_memory_mib=settings.memory_budget_mib,
        further=data.pop("further_metrics", {}),
    )
