"""Latency when no profile is given: coefficients over launches, MACs and precision borders, fitted as trials end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from sklearn.linear_model import LinearRegression

from autocompress.graph import Layer, ModelGraph
from autocompress.results.objectives import Floats
from autocompress.space.candidate import INT8_BITS, Candidate
from autocompress.space.rank_choice import parse_rank
from autocompress.space.ranks import cost, parts, ranks_of_ratio


class LatencyPredictor(Protocol):
    """What a search needs of a latency model; `autocompress.latency.LatencyModel` is one."""

    @property
    def baseline_ms(self) -> float:
        """Milliseconds of the uncompressed model."""

    def predict(self, candidates: Sequence[Candidate]) -> Floats:
        """Milliseconds, shape (n_candidates,)."""

    def interval(self, candidates: Sequence[Candidate]) -> Floats:
        """Lower and upper milliseconds, shape (n_candidates, 2)."""

    def update(self, candidate: Candidate, measured_ratio: float) -> None:
        """Learns from a measurement, as a share of the uncompressed model's latency."""


_PRIOR = np.array([0.10, 0.30, 0.18, 0.60, 0.12, 0.25])
_PRIOR_SPREAD = np.array([0.10, 0.15, 0.12, 0.25, 0.10, 0.20])
_NOISE = 0.03  # of a measured ratio
_FIRST_ERROR = 0.15  # relative, before anything was measured
_MIN_MEASURED = 8
_KEPT = 400  # measurements that count; the latest


class LaunchLatencyModel:
    """Ratio = fixed + launches + MACs, each at 32 and at 8 bits, + borders between precisions; none of them negative.

    The coefficients start from what small convolution networks show on CPUs and follow the measured candidates by
    ridge regression towards that start. It orders candidates well enough to plan with; a profile of the device is more
    exact.

    Args:
        graph: of the uncompressed model.
        baseline_ms: its latency, milliseconds.
    """

    def __init__(self, graph: ModelGraph, baseline_ms: float) -> None:
        self._baseline_ms = baseline_ms
        self._structure = _Structure(graph)
        self._coefficients = _PRIOR / (_PRIOR @ self._structure.features([Candidate()])[0])
        self._ratios: deque[float] = deque(maxlen=_KEPT)
        self._rows: deque[Floats] = deque(maxlen=_KEPT)
        self._error = _FIRST_ERROR

    @property
    def baseline_ms(self) -> float:
        """Milliseconds of the uncompressed model."""
        return self._baseline_ms

    def predict(self, candidates: Sequence[Candidate]) -> Floats:
        """Milliseconds, shape (n_candidates,)."""
        ratios: Floats = self._structure.features(candidates) @ self._coefficients
        return ratios * self._baseline_ms

    def interval(self, candidates: Sequence[Candidate]) -> Floats:
        """Prediction minus and plus twice the typical relative error of the fit, shape (n_candidates, 2)."""
        ms = self.predict(candidates)
        return np.stack([ms * max(0.0, 1 - 2 * self._error), ms * (1 + 2 * self._error)], axis=1)

    def update(self, candidate: Candidate, measured_ratio: float) -> None:
        """Fits again with one more measurement."""
        self._ratios.append(measured_ratio)
        self._rows.append(self._structure.features([candidate])[0])
        rows, ratios = np.array(self._rows), np.array(self._ratios)
        weights = 1 / (_NOISE * ratios)
        prior = _PRIOR / (_PRIOR @ self._structure.features([Candidate()])[0])
        augmented = np.vstack([rows * weights[:, None], np.diag(1 / _PRIOR_SPREAD)])
        targets = np.r_[ratios * weights, prior / _PRIOR_SPREAD]
        fit = LinearRegression(fit_intercept=False, positive=True).fit(augmented, targets)
        self._coefficients = fit.coef_
        if len(ratios) >= _MIN_MEASURED:
            errors = np.abs(rows @ self._coefficients / ratios - 1)
            self._error = float(max(_NOISE, np.median(errors)))


class _Structure:
    """A graph as arrays: what a candidate leaves of each layer."""

    def __init__(self, graph: ModelGraph) -> None:
        self.layers = graph.layers
        self._index = {layer.path: i for i, layer in enumerate(graph.layers)}
        self._group = {group.name: i for i, group in enumerate(graph.groups)}
        self._branch = {branch.name: branch.layers for branch in graph.branches}
        # share of a layer's outputs and inputs that go with all channels of a group
        self._shares = np.zeros((2, len(graph.groups), len(graph.layers)))
        for i, group in enumerate(graph.groups):
            for coupling in group.couplings:
                path, _, name = coupling.tensor.rpartition(".")
                if name == "weight" and path in self._index and coupling.dim < 2:
                    layer = self._index[path]
                    entries = sum(len(slots) for slots in coupling.slots)
                    self._shares[coupling.dim, i, layer] += entries / self.layers[layer].weight_shape[coupling.dim]
        self._macs = np.array([layer.n_macs for layer in graph.layers], dtype=float)

    def features(self, candidates: Sequence[Candidate]) -> Floats:
        """Fixed, launches and MACs each at 32 and at 8 bits, borders; shape (n_candidates, 6), shares of the model."""
        n, n_layers = len(candidates), max(1, len(self.layers))
        pruned = np.zeros((n, self._shares.shape[1]))
        present = np.ones((n, len(self.layers)))
        integer = np.zeros((n, len(self.layers)))
        for row, candidate in enumerate(candidates):
            for name, ratio in candidate.prune_ratio.items():
                pruned[row, self._group[name]] = ratio
            for name in candidate.drop:
                present[row, [self._index[path] for path in self._branch[name] if path in self._index]] = 0
            for path, bits in candidate.weight_bits.items():
                integer[row, self._index[path]] = bits == INT8_BITS
        kept = 1 - np.einsum("ng,dgl->dnl", pruned, self._shares)
        macs = self._macs * kept[0] * kept[1]
        launches = present.copy()
        for row, candidate in enumerate(candidates):
            for path, share in candidate.rank_ratio.items():
                layer = self._index[path]
                factor = self._factor(layer, share, candidate.rank_grid, kept[0, row, layer], kept[1, row, layer])
                if factor is not None:
                    macs[row, layer] *= factor
                    launches[row, layer] *= 2
        macs *= present
        total = max(self._macs.sum(), 1.0)
        columns = [
            np.ones(n),
            (launches * (1 - integer)).sum(1) / n_layers,
            (launches * integer).sum(1) / n_layers,
            (macs * (1 - integer)).sum(1) / total,
            (macs * integer).sum(1) / total,
            _borders(present, integer) / n_layers,
        ]
        return np.stack(columns, axis=1)

    def _factor(self, layer: int, choice: float | str, grid: int, kept_out: float, kept_in: float) -> float | None:
        """What splitting leaves of a layer's multiplications; None where it saves none and is not done.

        An energy is taken for a ratio: which rank keeps it shows only on data.
        """
        asked, whole = parse_rank(choice), self.layers[layer]
        shape = whole.weight_shape
        pruned = replace(whole, weight_shape=(round(shape[0] * kept_out), round(shape[1] * kept_in), *shape[2:]))
        ranks = ranks_of_ratio(pruned, asked.scheme, asked.share, grid)
        dense = sum(cost(part, None) for part in parts(pruned, asked.scheme))
        pairs = zip(parts(pruned, asked.scheme), _by_part(pruned, ranks), strict=True)
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
