"""Reads the files of a front point's folder: the shapes of its weights, its layer times, its example answers."""

from __future__ import annotations

import json
import re
import struct
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.results.node_times import LayerTimes
from autocompress.results.run_folder import LAYER_TIMES

WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"
_WEIGHT = re.compile(r"(?P<path>.+?)(\.\d+)?\.weight(_[ih]h_l\d+(_reverse)?)?")
_MAX_HEADER = 2**26
Shape = tuple[int, ...]


@dataclass(frozen=True)
class PointFiles:
    """Facts of a point that are not in its record.

    Attributes:
        shapes: layer path -> shapes of its weights; two or more where it was split into factors.
        times: where the time of one run goes; None where no profiler was at hand.
        answers: to each of the example inputs, see `example_answers`.
    """

    shapes: Mapping[str, tuple[Shape, ...]] = field(default_factory=dict)
    times: LayerTimes | None = None
    answers: tuple[float, ...] = ()


def read_point_files(folder: Path, layers: Iterable[str]) -> PointFiles:
    """Reads a point's folder; a missing file leaves its field empty, a damaged one also gives a warning.

    Args:
        folder: of the point.
        layers: paths of the model's layers.
    """
    try:
        times = LayerTimes.read(folder / LAYER_TIMES) if (folder / LAYER_TIMES).is_file() else None
        return PointFiles(_shapes(folder / WEIGHTS, set(layers)), times, _answers(folder / MANIFEST))
    except (
        InputError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        struct.error,
    ) as error:
        warnings.warn(f"the files in {folder} cannot be read and are left out: {error}", stacklevel=2)
        return PointFiles()


def _shapes(file: Path, layers: set[str]) -> dict[str, tuple[Shape, ...]]:
    """From the header of a safetensors file; no tensor is loaded."""
    if not file.is_file():
        return {}
    with file.open("rb") as stream:
        (n_header,) = struct.unpack("<Q", stream.read(8))
        if n_header > _MAX_HEADER:
            raise ValueError(f"its header would be {n_header} bytes")
        header: dict[str, dict[str, Any]] = json.loads(stream.read(n_header))
    shapes: dict[str, tuple[Shape, ...]] = {}
    for name, entry in sorted(header.items()):
        match = _WEIGHT.fullmatch(name)
        path = "" if match is None else match["path"] + (match[2] or "")
        # "a.0.weight" is the layer "a.0", or the first factor of the layer "a"
        owner = next((p for p in (path, "" if match is None else match["path"]) if p in layers), None)
        if owner is not None:
            shapes[owner] = (*shapes.get(owner, ()), tuple(entry["shape"]))
    return shapes


def _answers(file: Path) -> tuple[float, ...]:
    return example_answers(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else ()


def example_answers(manifest: Mapping[str, Any]) -> tuple[float, ...]:
    """The file's outputs for its examples: numbers, or positions of the largest output; () if not known."""
    said = manifest.get("examples", {})
    if "output" in said:
        return tuple(float(value) for value in said["output"])
    return tuple(int(i) for i in said.get("largest_output", ()))


_CONVERSIONS = frozenset(
    ("Cast", "Convert", "DequantizeLinear", "DynamicQuantizeLinear", "FakeQuantize", "QuantizeLinear")
)
_LAYOUT = frozenset(("Reorder", "ReorderInput", "ReorderOutput", "Transpose"))


@dataclass(frozen=True)
class TimeShares:
    """The milliseconds of one run, by part.

    Attributes:
        layers: layer path -> its milliseconds, without dropped layers.
        conversions_ms, n_conversions: between 8-bit and float numbers.
        layout_ms, n_layout: between memory layouts.
        other_ms, n_other: everything else, such as additions, activations and pooling.
    """

    layers: Mapping[str, float]
    conversions_ms: float
    n_conversions: int
    layout_ms: float
    n_layout: int
    other_ms: float
    n_other: int

    @property
    def total_ms(self) -> float:
        """Of one run."""
        return sum(self.layers.values()) + self.conversions_ms + self.layout_ms + self.other_ms


def time_shares(times: LayerTimes, layers: Iterable[str]) -> TimeShares:
    """Sums the nodes by layer; a conversion is never counted as part of a layer.

    Args:
        times: of one file.
        layers: paths of the model's layers.
    """
    known = set(layers)
    by_layer: dict[str, float] = defaultdict(float)
    rest: dict[str, list[float]] = {"conversions": [], "layout": [], "other": []}
    for node in times.nodes:
        owner = _owner(node.path, known)
        if node.op in _CONVERSIONS:
            rest["conversions"].append(node.ms)
        elif node.op in _LAYOUT:
            rest["layout"].append(node.ms)
        elif owner is not None:
            by_layer[owner] += node.ms
        else:
            rest["other"].append(node.ms)
    counted = [figure for values in rest.values() for figure in (sum(values), len(values))]
    return TimeShares(by_layer, *counted)  # type: ignore[arg-type]


def _owner(path: str, layers: set[str]) -> str | None:
    """The layer at this path or around it."""
    while path:
        if path in layers:
            return path
        path = path.rpartition(".")[0]
    return None
