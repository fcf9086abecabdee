"""The measurements of a device profile, and the JSON file that holds them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.files import read_json
from autocompress.graph import ModelGraph
from autocompress.latency.candidate_encoder import Encoder, ModelShape
from autocompress.latency.on_device import runtime_version
from autocompress.latency.schema import DamageError, check_positive, check_type
from autocompress.machine import describe_machine
from autocompress.space.candidate import Candidate

SCHEMA_VERSION = 1
_HEAD: dict[str, Any] = {
    "task": str,
    "runtime": str,
    "version": str,
    "n_threads": int,
    "batch": int,
    "device": Mapping[str, str],
    "date": str,
    "repeatability": float | None,
    "clock_drift": float,
}
_BODY = ("baseline_ms", "shape", "pieces", "candidates")
PIECE_KEY = re.compile(r".+\|\d+>\d+ r\S+ b\d+w?")


@dataclass(frozen=True)
class Table:
    """The measurements of a profile.

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
            raise InputError(
                f"the profile is of {', '.join(wrong)}; make a new one, or force this one (--force-profile)"
            )


def read_table(path: Path) -> tuple[Table, list[tuple[Candidate, float]]]:
    """The table and the updates of a file.

    Raises:
        InputError: the file is missing, cut off, or no profile; names the line.
    """
    data = read_json(path)
    try:
        return _table_of(data)
    except DamageError as damage:
        raise damage.at_line(path) from damage


def _table_of(data: Mapping[str, Any]) -> tuple[Table, list[tuple[Candidate, float]]]:
    if data.get("schema") != SCHEMA_VERSION:
        raise DamageError(("schema",), f"must be {SCHEMA_VERSION}, but is {data.get('schema')!r}")
    missing = [key for key in (*_HEAD, *_BODY) if key not in data]
    if missing:
        raise DamageError((), f"must have {', '.join(missing)}, which it lacks")
    for key, kind in {**_HEAD, "shape": ModelShape, "pieces": Mapping[str, float]}.items():
        check_type(kind, data[key], (key,))
    for place in (("n_threads",), ("batch",), ("baseline_ms",), *(("pieces", key) for key in data["pieces"])):
        value = data
        for step in place:
            value = value[step]
        check_positive(value, place)
    for key in data["pieces"]:
        if not PIECE_KEY.fullmatch(key):
            raise DamageError(("pieces", key), "must be the key of a layer, as `linear @1|8>4 r0 b32`")
    if "cpu" not in data["device"]:
        raise DamageError(("device",), "must have `cpu`")
    shape = shape_of(data["shape"])
    pairs = [measured_pairs(shape, key, data.get(key, [])) for key in ("candidates", "updates")]
    head = {key: data[key] for key in _HEAD}
    return Table(head, float(data["baseline_ms"]), shape, dict(data["pieces"]), tuple(pairs[0])), pairs[1]


def require_same_model(shape: ModelShape, graph: ModelGraph, task: str) -> None:
    """Refuses a graph of another model than the shape's.

    Raises:
        InputError: layers, channel groups or branches are others.
    """
    if ModelShape.of(graph, {layer.path: layer.signature for layer in shape.layers}) != shape:
        raise InputError(
            f"the profile is of another model ({task}, {len(shape.layers)} layers); make one of this model"
        )


def shape_of(data: Mapping[str, Any]) -> ModelShape:
    """A model's shape, whose names and indices are checked.

    Raises:
        DamageError: a name is there twice, or an index is out of range.
    """
    shape = ModelShape.from_dict(data)
    limits = {"layers": len(shape.layers), "branches": len(shape.branches)}
    names = {
        "layers": [layer.path for layer in shape.layers],
        "groups": [group.name for group in shape.groups],
        "branches": list(shape.branches),
    }
    keys: dict[str, tuple[str, ...]] = {"layers": ("path",), "groups": ("name",), "branches": ()}
    for what, given in names.items():
        for i, name in enumerate(given):
            if name in given[:i]:
                raise DamageError(
                    ("shape", what, i, *keys[what]), f"must be a name of its own, but {name!r} is another's"
                )
    for i, layer in enumerate(shape.layers):
        for name, indices in (("layers", layer.feeds), ("branches", layer.branches)):
            if any(not 0 <= index < limits[name] for index in indices):
                raise DamageError(("shape", "layers", i), f"must name {name} by indices below {limits[name]}")
        if min(layer.n_out, layer.n_in, layer.groups) < 1:
            raise DamageError(("shape", "layers", i), "must have at least one input, output and group")
    for i, group in enumerate(shape.groups):
        members = [*group.producers, *(layer for layer, _ in (*group.out, *group.into))]
        if any(not 0 <= index < limits["layers"] for index in members):
            raise DamageError(("shape", "groups", i), f"must name layers by indices below {limits['layers']}")
    return shape


def measured_pairs(shape: ModelShape, key: str, values: object) -> list[tuple[Candidate, float]]:
    """Pairs of a candidate of the model and a ratio.

    Raises:
        DamageError: they are not.
    """
    check_type(tuple[tuple[Mapping[str, Any], float], ...], values, (key,))
    assert isinstance(values, list)
    encoder, pairs = Encoder(shape), []
    for i, (asked, ratio) in enumerate(values):
        check_positive(ratio, (key, i, 1))
        try:
            candidate = Candidate.from_dict(asked)
            encoder.states([candidate])
        except (InputError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise DamageError((key, i), f"must be a candidate of this model and its ratio: {error}") from error
        pairs.append((candidate, float(ratio)))
    return pairs
