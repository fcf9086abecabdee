"""Node times summed by layer of the model, conversions of precision, and the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from autocompress.results.node_times import LayerTimes

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
