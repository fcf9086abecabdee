"""Latency when no profile is given: coefficients over launches, MACs and precision borders, fitted as trials end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from sklearn.linear_model import LinearRegression

from autocompress.graph import Layer, ModelGraph
from autocompress.latency.candidate_encoder import Encoder, Floats, LayerStates, ModelShape
from autocompress.space.candidate import INT8_BITS, PRECISIONS, Candidate
from autocompress.space.rank_choice import parse_rank
from autocompress.space.ranks import cost, parts, ranks_of_ratio

_PRIOR = np.array([0.10, 0.30, 0.18, 0.60, 0.12, 0.25])
_PRIOR_SPREAD = np.array([0.10, 0.15, 0.12, 0.25, 0.10, 0.20])
_NOISE = 0.03  # of a measured ratio
_FIRST_ERROR = 0.15  # relative, before anything was measured
_MIN_MEASURED = 8
_KEPT = 400  # measurements that count; the latest
_INT8 = PRECISIONS.index(INT8_BITS)


class LaunchLatencyModel:
    """Ratio = fixed + launches + MACs, each at 32 and at 8 bits, + borders between precisions; none of them negative.

    The coefficients start from those of small convolution networks on CPUs and follow the measured candidates by
    ridge regression towards that start. It orders candidates well enough to plan with; a profile of the device is more
    exact.

    Args:
        graph: of the uncompressed model.
    """

    def __init__(self, graph: ModelGraph) -> None:
        shape = ModelShape.of(graph, {})
        self._layers, self._encoder = graph.layers, Encoder(shape)
        self._sizes = np.array([layer.n_out * layer.n_in for layer in shape.layers], dtype=float)
        self._macs = np.array([layer.n_macs for layer in shape.layers], dtype=float)
        self._shares: dict[tuple[int, ...], float | None] = {}
        self._prior = _PRIOR / (_PRIOR @ self._features([Candidate()])[0])
        self._coefficients = self._prior
        self._ratios: deque[float] = deque(maxlen=_KEPT)
        self._rows: deque[Floats] = deque(maxlen=_KEPT)
        self._error = _FIRST_ERROR

    def ratios(self, candidates: Sequence[Candidate]) -> Floats:
        """Ratios to the uncompressed model's latency, shape (n_candidates,)."""
        ratios: Floats = self._features(candidates) @ self._coefficients
        return ratios

    def ratio_interval(self, candidates: Sequence[Candidate]) -> Floats:
        """Prediction minus and plus twice the typical relative error of the fit, shape (n_candidates, 2)."""
        ratios = self.ratios(candidates)
        return np.stack([ratios * max(0.0, 1 - 2 * self._error), ratios * (1 + 2 * self._error)], axis=1)

    def update(self, candidate: Candidate, measured_ratio: float) -> None:
        """Fits again with one more measurement."""
        self._ratios.append(measured_ratio)
        self._rows.append(self._features([candidate])[0])
        rows, ratios = np.array(self._rows), np.array(self._ratios)
        weights = 1 / (_NOISE * ratios)
        augmented = np.vstack([rows * weights[:, None], np.diag(1 / _PRIOR_SPREAD)])
        targets = np.r_[ratios * weights, self._prior / _PRIOR_SPREAD]
        fit = LinearRegression(fit_intercept=False, positive=True).fit(augmented, targets)
        self._coefficients = fit.coef_
        if len(ratios) >= _MIN_MEASURED:
            errors = np.abs(rows @ self._coefficients / ratios - 1)
            self._error = float(max(_NOISE, np.median(errors)))

    def _features(self, candidates: Sequence[Candidate]) -> Floats:
        """Fixed, launches and MACs each at 32 and at 8 bits, borders; shape (n_candidates, 6), shares of the model."""
        states = self._encoder.states(candidates)
        n_layers, total = max(1, len(self._layers)), max(self._macs.sum(), 1.0)
        present, integer = states.alive.astype(float), (states.bits == _INT8).astype(float)
        macs = self._macs * (states.n_out * states.n_in / self._sizes) * present
        launches = present.copy()
        for row, layer in np.argwhere(states.rank > 0).tolist():
            share = self._split_share(states, row, layer)
            if share is not None:
                macs[row, layer] *= share
                launches[row, layer] *= 2
        columns = [
            np.ones(len(candidates)),
            (launches * (1 - integer)).sum(1) / n_layers,
            (launches * integer).sum(1) / n_layers,
            (macs * (1 - integer)).sum(1) / total,
            (macs * integer).sum(1) / total,
            _borders(present, integer) / n_layers,
        ]
        return np.stack(columns, axis=1)

    def _split_share(self, states: LayerStates, row: int, layer: int) -> float | None:
        """See `_split_share`, kept for each state of each layer."""
        n_out, n_in, rank = (int(values[row, layer]) for values in (states.n_out, states.n_in, states.rank))
        key = (layer, n_out, n_in, rank)
        if key not in self._shares:
            choice, grid = self._encoder.ranks[rank]
            assert choice is not None
            self._shares[key] = _split_share(_resized(self._layers[layer], n_out, n_in), choice, grid)
        return self._shares[key]


def _resized(layer: Layer, n_out: int, n_in: int) -> Layer:
    """A layer of these sizes; a recurrent one keeps its size, as only the share of it counts."""
    if layer.input_shapes:
        return layer
    if layer.kind == "embedding":
        return replace(layer, weight_shape=(layer.weight_shape[0], n_out))
    return replace(layer, weight_shape=(n_out, n_in, *layer.weight_shape[2:]))


def _split_share(layer: Layer, choice: float | str, grid: int) -> float | None:
    """The share of a layer's multiplications that is left once it is split; None where splitting saves none.

    An energy is taken for a ratio: which rank keeps it shows only on data.
    """
    asked = parse_rank(choice)
    ranks = ranks_of_ratio(layer, asked.scheme, asked.share, grid)
    dense = sum(cost(part, None) for part in parts(layer, asked.scheme))
    pairs = zip(parts(layer, asked.scheme), _by_part(layer, ranks), strict=True)
    split = sum(min(cost(part, asked.scheme, own), cost(part, None)) for part, own in pairs)
    return split / dense if split < dense else None


def _by_part(layer: Layer, ranks: Sequence[int]) -> list[Sequence[int]]:
    """The ranks of each matrix of a layer: a recurrent one has a rank for each level."""
    return [[rank] for rank in ranks] if layer.input_shapes else [ranks]


def _borders(present: Floats, integer: Floats) -> Floats:
    """How often the precision changes along the layers that are left; the input and the output are at 32 bits."""
    borders = np.zeros(len(present))
    last = np.zeros(len(present))
    for layer in range(present.shape[1]):
        here = present[:, layer] > 0
        borders += here * np.abs(integer[:, layer] - last)
        last = np.where(here, integer[:, layer], last)
    borders += last
    return borders
