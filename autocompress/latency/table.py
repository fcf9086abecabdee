"""A profile as data: what was measured on which device, and the JSON file that holds it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.candidate import Candidate
from autocompress.errors import InputError
from autocompress.latency.device import read_json, runtime_version
from autocompress.latency.structure import ModelShape
from autocompress.machine import describe_machine

SCHEMA_VERSION = 1
_HEAD = ("task", "runtime", "version", "n_threads", "batch", "device", "date", "repeatability", "clock_drift")


@dataclass(frozen=True)
class Table:
    """What a profile measured.

    Attributes:
        head: where and how: task, runtime and its version, n_threads, batch, device, date, repeatability, clock_drift.
        baseline_ms: latency of the uncompressed model, milliseconds.
        shape: of the model.
        pieces: key of a layer -> its latency alone, as a ratio to the uncompressed model's.
        candidates: whole candidates and their ratios.
    """

    head: Mapping[str, Any]
    baseline_ms: float
    shape: ModelShape
    pieces: Mapping[str, float]
    candidates: tuple[tuple[Candidate, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "schema": SCHEMA_VERSION,
            **self.head,
            "baseline_ms": self.baseline_ms,
            "shape": self.shape.to_dict(),
            "pieces": dict(self.pieces),
            "candidates": [[candidate.to_dict(), ratio] for candidate, ratio in self.candidates],
        }

    def require(self, runtime: str, n_threads: int, batch: int, force: bool) -> None:
        """See `LatencyModel.require`."""
        here = {
            "runtime": runtime,
            "n_threads": n_threads,
            "batch": batch,
            "version": runtime_version(runtime),
            "device": describe_machine()["cpu"],
        }
        there = {**self.head, "device": self.head["device"]["cpu"]}
        wrong = [f"{key} {there[key]!r}, not {value!r}" for key, value in here.items() if there[key] != value]
        if wrong and not force:
            raise InputError(f"the profile is of {', '.join(wrong)}; make a new one, or force this one")


def read_table(path: Path) -> tuple[Table, list[tuple[Candidate, float]]]:
    """The table and the updates of a file.

    Raises:
        InputError: the file is missing, cut off, or not what a profile writes; names the line.
    """
    data = read_json(path)
    file = _File(path, path.read_text(encoding="utf-8").splitlines())
    if data.get("schema") != SCHEMA_VERSION:
        raise file.error("schema", f"`schema` must be {SCHEMA_VERSION}, but is {data.get('schema')!r}")
    missing = [key for key in (*_HEAD, "baseline_ms", "shape", "pieces", "candidates") if key not in data]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; it is no profile, or was edited")
    try:
        shape = ModelShape.from_dict(data["shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise file.error("shape", f"`shape` is damaged: {error}") from error
    if not isinstance(data["pieces"], dict):
        raise file.error("pieces", "`pieces` must map keys to ratios")
    pieces = {key: file.ratio(key, value) for key, value in data["pieces"].items()}
    table = Table(
        head={key: data[key] for key in _HEAD},
        baseline_ms=file.ratio("baseline_ms", data["baseline_ms"]),
        shape=shape,
        pieces=pieces,
        candidates=tuple(file.measured("candidates", data["candidates"])),
    )
    return table, file.measured("updates", data.get("updates", []))


class _File:
    """Says at which line of a file a value is wrong."""

    def __init__(self, path: Path, lines: list[str]) -> None:
        self._path, self._lines = path, lines

    def error(self, key: str, rule: str, after: int = 0) -> InputError:
        """An error at the line of a key."""
        name = json.dumps(key)
        line = next((i for i, text in enumerate(self._lines, 1) if text.strip().startswith(f"{name}:")), after)
        return InputError(f"{self._path}, line {line}: {rule}; the file was edited or is damaged, make it again")

    def ratio(self, key: str, value: object) -> float:
        """A positive number."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise self.error(key, f"{key!r} must be a positive number, but is {value!r}")
        return float(value)

    def measured(self, key: str, values: object) -> list[tuple[Candidate, float]]:
        """Pairs of a candidate and a ratio."""
        if not isinstance(values, list):
            raise self.error(key, f"{key!r} must be a list of [candidate, ratio]")
        pairs = []
        for i, value in enumerate(values):
            try:
                candidate, ratio = value
                pairs.append((Candidate.from_dict(candidate), self.ratio(key, ratio)))
            except (TypeError, ValueError, AttributeError) as error:
                raise self.error(key, f"entry {i + 1} of {key!r} is wrong: {error}") from error
        return pairs
