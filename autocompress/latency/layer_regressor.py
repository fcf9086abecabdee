"""Estimates the time of a layer that is not in a table from those that are: a fit to what they compute and move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from autocompress.latency.candidate_encoder import LayerShape
from autocompress.latency.layer_costs import matrices_of_text

Floats = NDArray[np.float64]
_ENOUGH = 5
_SHRINK = 1e-3


class LayerLatencyRegressor:
    """Times of layers by launches, multiplications, inputs and outputs, none of them with a negative cost.

    The fit is to measured layers that are as alike as possible: of the same signature, precision and number of factors;
    where there are too few of them, of the same signature and precision, of the same signature, or of the same kind.

    Args:
        layers: of the model; only measured layers of their signatures count.
        pieces: key -> time.
    """

    def __init__(self, layers: Sequence[LayerShape], pieces: Mapping[str, float]) -> None:
        self._layers = {layer.signature: layer for layer in layers}
        self._members: dict[tuple[str, ...], list[tuple[Floats, float]]] = {}
        self._fits: dict[tuple[str, ...], Floats] = {}
        for key, time in pieces.items():
            if key.partition("|")[0] in self._layers:
                work = self._work(key)
                for alike in self._alike(key):
                    self._members.setdefault(alike, []).append((work, time))

    def time(self, key: str) -> float:
        """Of a layer by its key; 0 where the table has nothing of its kind."""
        alike = [name for name in self._alike(key) if name in self._members]
        if not alike:
            return 0.0
        name = next((name for name in alike if len(self._members[name]) >= _ENOUGH), alike[-1])
        if name not in self._fits:
            works, times = zip(*self._members[name], strict=True)
            self._fits[name] = _fit(np.array(works), np.array(times))
        return float(self._work(key) @ self._fits[name])

    def _work(self, key: str) -> Floats:
        signature, n_out, n_in, rank, _ = parse_key(key)
        layer = self._layers[signature]
        shapes = matrices_of_text(layer, n_out, n_in, rank)
        n_weights = [float(math.prod(shape)) for shape in shapes]
        whole = sum(math.prod(shape) for shape in matrices_of_text(layer, layer.n_out, layer.n_in, "0"))
        places = max(layer.n_macs, 1) / whole
        n_outputs = float(sum(shape[0] for shape in shapes))
        return np.array(
            [len(shapes), sum(n_weights[:-1]) * places, n_weights[-1] * places, n_in * places, n_outputs * places]
        )

    def _alike(self, key: str) -> list[tuple[str, ...]]:
        """Names of the classes that a layer belongs to, the narrowest first."""
        signature, n_out, n_in, rank, bits = parse_key(key)
        n_factors = str(len(matrices_of_text(self._layers[signature], n_out, n_in, rank)))
        kind = self._layers[signature].kind
        return [(signature, bits, n_factors), (signature, bits), (signature,), (kind, "any size", bits), (kind,)]


def parse_key(key: str) -> tuple[str, int, int, str, str]:
    """Signature, outputs, inputs, rank and bits of a key as `layer_key` makes it."""
    signature, _, rest = key.rpartition("|")
    size, rank, bits = rest.split(" ")
    n_in, _, n_out = size.partition(">")
    return signature, int(n_out), int(n_in), rank[1:], bits[1:]


def _fit(works: Floats, times: Floats) -> Floats:
    """Costs that minimise the relative error; the smallest ones where several do."""
    scale = np.maximum(works.max(0), 1e-12)
    rows = works / scale / times[:, None]
    shrink = _SHRINK * np.diag(np.maximum(rows.max(0), 1e-12))
    costs, _ = nnls(np.concatenate([rows, shrink]), np.concatenate([np.ones(len(times)), np.zeros(works.shape[1])]))
    solution: Floats = costs / scale
    return solution
