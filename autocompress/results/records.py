"""What a trial gave, as data: one JSON object per trial, the same in the study and in `trials.jsonl`."""

from __future__ import annotations

import json
import math
import shlex
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from autocompress.declared_types import require_types
from autocompress.errors import InputError
from autocompress.files import write_atomically
from autocompress.settings_schema import shown
from autocompress.space.candidate import Candidate

State = Literal["complete", "stopped", "failed"]
WHOLE_MODEL = "whole model"
"""Origin of the uncompressed model at one precision of the runtime, without training."""

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Latency:
    """A latency measured in rounds that alternate with the uncompressed model.

    Attributes:
        ratio: candidate time / uncompressed time, timed in alternation; 1.0 is the uncompressed model's speed.
        spread: half the distance between the quartiles of the rounds' ratios.
        ms: milliseconds, `ratio` times the run's reference latency of the uncompressed model.
        n_rounds: how many paired rounds.
    """

    ratio: float
    spread: float
    ms: float
    n_rounds: int


@dataclass(frozen=True)
class Rung:
    """The metrics after a number of fine-tune steps, on the selection split."""

    steps: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class FileNumbers:
    """What was measured from an exported file by the target runtime, with the workers idle.

    Attributes:
        metrics: split name -> metric name -> value, for "selection", "test" and further splits of the task.
        n_samples: split name -> number of samples behind the metrics (0: not known).
        latency: timed again at the end.
        size_mib: size of the runtime's file.
        sparse_size_mib: what the file would take with a sparse encoding of the zeroed weights (see
            `sparse_saving_bytes`); None where nothing was zeroed.
        zip_size_mib: size of the file in a zip archive; None where an earlier version measured.
        max_abs_diff: largest difference between the file's and the PyTorch student's outputs on real inputs.
        agreement: share of those inputs on which both have the same largest output.
        memory_mib: what loading and running the file adds to the memory of a process that holds the runtime; None where
            it was not measured.
    """

    metrics: Mapping[str, Mapping[str, float]]
    n_samples: Mapping[str, int]
    latency: Latency
    size_mib: float
    max_abs_diff: float
    agreement: float
    sparse_size_mib: float | None = None
    memory_mib: float | None = None
    zip_size_mib: float | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FileNumbers:
        """From the JSON values of a record or a manifest.

        Raises:
            KeyError, TypeError, AttributeError: they are none.
        """
        metrics = {split: _with_nan(values) for split, values in data["metrics"].items()}
        numbers = cls(**{**data, "metrics": metrics, "latency": Latency(**_with_nan(data["latency"]))})
        require_types(numbers, cls)
        return numbers


@dataclass(frozen=True)
class Predicted:
    """A latency that was predicted before the trial ran, milliseconds.

    Attributes:
        ms: what was expected.
        low_ms, high_ms: ends of the interval.
    """

    ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a search.

    Attributes:
        number: the study's trial number; also the name of its folder, `trial_0042`.
        state: "complete"; "stopped" early, at its last rung, because its rank was low: a point like any other, trained
            less; or "failed" with a traceback in `error`.
        origin: who proposed it: "baseline", "whole model" (see `WHOLE_MODEL`), "uniform", "single drop", "sampler",
            "random" (it repeated itself), or "polished" (trained further by the search, out of the sampler's sight), or
            "refined" (by `refine`).
        candidate: what was asked.
        metrics: the best rung's metrics on the selection split (empty when failed).
        latency: measured during the search (None when failed before).
        feasible: True when the measured latency is within the budget and the metric is large enough to be useful.
        fine_tuned: False when it was so far over the budget that it got no fine-tune.
        n_params, n_macs, size_mib: of the compressed model; size of the runtime's file.
        sparse_size_mib: see `FileNumbers`.
        rungs: metrics after each step of the fine-tune.
        seconds: phase -> seconds spent in it on a worker.
        started, ended: seconds since the run's first start.
        error: traceback when failed.
        file: filled for points of the front, from the exported file.
        predicted: the latency that the latency model expected; None for trials that were not predicted.
        peak_memory_mib: the most memory that the trial had in use: of the GPU that it was trained on, else of its
            worker process, the teacher and the data included; None where it was not measured.
        parent: name of the trial whose trained weights it started from; None for the uncompressed model's.
    """

    number: int
    state: State
    origin: str
    candidate: Candidate
    metrics: Mapping[str, float] = field(default_factory=dict)
    latency: Latency | None = None
    feasible: bool = False
    fine_tuned: bool = False
    n_params: int = 0
    n_macs: int = 0
    size_mib: float = math.nan
    sparse_size_mib: float | None = None
    rungs: tuple[Rung, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    started: float = 0.0
    ended: float = 0.0
    error: str | None = None
    file: FileNumbers | None = None
    predicted: Predicted | None = None
    parent: str | None = None
    peak_memory_mib: float | None = None

    @property
    def name(self) -> str:
        """`trial_0042`."""
        return f"trial_{self.number:04d}"

    @property
    def is_trained_longer(self) -> bool:
        """Whether it trains a candidate further that was judged before; a search neither counts nor learns from it."""
        return self.origin in ("polished", "refined")

    @property
    def is_point(self) -> bool:
        """Whether it left a student that may be on the front; one that was stopped early did."""
        return self.state != "failed" and self.latency is not None

    def with_file(self, file: FileNumbers) -> TrialRecord:
        """The same record with the numbers measured from its exported file."""
        return replace(self, file=file)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; NaN becomes null."""
        data = {**asdict(self), "candidate": self.candidate.to_dict()}
        data["schema"] = SCHEMA_VERSION
        return {key: without_nan(value) for key, value in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrialRecord:
        """The inverse of `to_dict`.

        Raises:
            InputError: written by another schema version, or a key is missing or unknown.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"a trial record is a JSON object, but got {shown(data)}")
        values = dict(data)
        schema = values.pop("schema", None)
        if schema != SCHEMA_VERSION:
            raise InputError(
                f"trial records of schema {SCHEMA_VERSION} can be read, but got {schema!r}; "
                "use the version that wrote them"
            )
        try:
            values["candidate"] = Candidate.from_dict(values["candidate"])
            values["metrics"] = _with_nan(values["metrics"])
            values["latency"] = Latency(**_with_nan(values["latency"])) if values["latency"] is not None else None
            values["rungs"] = tuple(Rung(rung["steps"], _with_nan(rung["metrics"])) for rung in values["rungs"])
            values["size_mib"] = math.nan if values["size_mib"] is None else values["size_mib"]
            values["file"] = FileNumbers.from_dict(values["file"]) if values["file"] is not None else None
            values["predicted"] = Predicted(**values["predicted"]) if values.get("predicted") is not None else None
            record = cls(**values)
            require_types(record, cls)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"a trial record is damaged: {error}") from error
        if record.number < 0:
            raise InputError(f"a trial record is damaged: `number >= 0` must hold, but got {record.number}")
        return record


def without_nan(value: Any) -> Any:
    """The value for JSON, which has neither NaN nor infinities: they become None, in mappings and lists too."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value


def _with_nan(figures: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a figure that is null was one."""
    return {name: math.nan if value is None else value for name, value in figures.items()}


def write_records(path: Path, records: Iterable[TrialRecord]) -> None:
    """Writes one JSON object per line, through a temporary file so that a crash leaves the old one."""
    write_atomically(path, "".join(json.dumps(record.to_dict()) + "\n" for record in records))


def append_record(path: Path, record: TrialRecord) -> None:
    """Adds one line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record.to_dict()) + "\n")


def read_records(path: Path) -> list[TrialRecord]:
    """All records of a `trials.jsonl`; a cut-off last line is skipped with a warning.

    Raises:
        InputError: the file is missing, a line other than the last is damaged, or a trial is in it twice.
    """
    way_out = f"`autocompress resume {shlex.quote(str(path.parent))}` writes the file anew from the study"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise InputError(f"a run folder holds {path.name}, but {path} does not exist; {way_out}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be readable UTF-8 text, but: {error}; {way_out}") from error
    if lines and not lines[-1]:
        lines.pop()
    records: dict[int, TrialRecord] = {}
    for i, line in enumerate(lines):
        where = f"{path}, line {i + 1}"
        try:
            record = TrialRecord.from_dict(json.loads(line))
        except InputError as error:
            raise InputError(f"{where}: {error}; {way_out}") from error
        except (ValueError, RecursionError) as error:
            if i < len(lines) - 1:
                raise InputError(f"{where} is not JSON: {error}; {way_out}") from error
            warnings.warn(f"{path}: the last line is cut off and was skipped", stacklevel=2)
            continue
        if record.number in records:
            raise InputError(f"{where}: trial {record.number} is in the file twice; {way_out}")
        records[record.number] = record
    return list(records.values())


def numbers_in(path: Path) -> set[int]:
    """The trials that a `trials.jsonl` names, however damaged the rest of it is."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    numbers = set()
    for line in lines:
        try:
            number = json.loads(line)["number"]
        except (ValueError, RecursionError, TypeError, KeyError):
            continue
        if type(number) is int:
            numbers.add(number)
    return numbers
