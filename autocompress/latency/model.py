"""Predicts the latency of candidates: layer times of a table, context terms, and a fit to measured candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from autocompress.errors import InputError
from autocompress.graph import ModelGraph
from autocompress.latency.layer_table import LayerLatencyTable
from autocompress.latency.on_device import write_json
from autocompress.latency.table import Table, read_table, require_same_model
from autocompress.space.candidate import FULL_BITS, PRECISIONS, Candidate

Floats = NDArray[np.float64]
LEVEL = 0.96
"""Share of measurements that an interval is to contain: 2 % may lie above it, 2 % below."""

_PENALTIES = (0.01, 0.1, 1.0, 10.0)
_WIDER_OUTSIDE = 0.5
_SMALLEST_RATIO = 1e-3


@dataclass
class LatencyModel:
    """Latencies of candidates on one device, as ratios to the uncompressed model: these hold when clocks drift.

    A ratio is a fixed share, plus the times of the layers alone, weighted by precision, plus terms for split layers,
    outputs, and borders between neighbours of different precision. The weights are fitted by ridge regression of the
    relative error on measured candidates; the penalty is chosen by leaving one out. Intervals come from the
    leave-one-out residuals (conformal prediction by the jackknife, Barber et al. 2021, arXiv:1905.02928).

    Args:
        table: what was measured, on what.
        updates: candidates that were measured later, with their ratios.
    """

    table: Table
    updates: list[tuple[Candidate, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        measured = self.measured
        used = {FULL_BITS, *(bits for candidate, _ in measured for bits in candidate.weight_bits.values())}
        precisions = [precision for precision in PRECISIONS if precision in used]
        self._times = LayerLatencyTable(self.table.shape, self.table.pieces, precisions)
        self._fit: _Fit | None = None

    @property
    def measured(self) -> list[tuple[Candidate, float]]:
        """Whole candidates and their measured ratios: those of the profile, then the updates."""
        return [*self.table.candidates, *self.updates]

    @property
    def baseline_ms(self) -> float:
        """Latency of the uncompressed model when the profile was made, milliseconds."""
        return self.table.baseline_ms

    def predict(self, candidates: Sequence[Candidate]) -> Floats:
        """Milliseconds, shape (n,)."""
        return self.ratios(candidates) * self.baseline_ms

    def ratios(self, candidates: Sequence[Candidate]) -> Floats:
        """Ratios to the uncompressed model's latency, shape (n,)."""
        return self._fitted().predict(self._times.sums(candidates).features)

    def interval(self, candidates: Sequence[Candidate], level: float = LEVEL) -> Floats:
        """Lower and upper ends in milliseconds, shape (n, 2)."""
        return self.ratio_interval(candidates, level) * self.baseline_ms

    def ratio_interval(self, candidates: Sequence[Candidate], level: float = LEVEL) -> Floats:
        """Lower and upper ends as ratios, shape (n, 2).

        They are wider for candidates with layers that are not in the table, by half the share of time in such layers.

        Args:
            candidates: of the profiled model.
            level: share of measurements that are to lie within, half of the others on each side.
        """
        sums = self._times.sums(candidates)
        predicted = self._fitted().predict(sums.features)
        low, high = self._fitted().errors(level)
        wider = _WIDER_OUTSIDE * sums.outside
        return np.stack([predicted * np.maximum(1 + low - wider, 0.0), predicted * (1 + high + wider)], 1)

    def naive_ratio(self, candidates: Sequence[Candidate]) -> Floats:
        """The plain sum over layers, which no context term corrects, shape (n,); for comparison."""
        baseline = self._times.sums([Candidate()]).naive[0]
        naive: Floats = self._times.sums(candidates).naive / baseline
        return naive

    def n_outside(self, candidates: Sequence[Candidate]) -> NDArray[np.int64]:
        """How many layers of each candidate are not in the table, so that their times are estimated, shape (n,)."""
        return self._times.sums(candidates).n_outside

    def update(self, candidate: Candidate, measured_ratio: float) -> None:
        """Learns from a measurement; the fit is made again.

        Raises:
            InputError: the ratio is not a positive number.
        """
        if not (np.isfinite(measured_ratio) and measured_ratio > 0):
            raise InputError(f"`measured_ratio > 0` must hold, but got {measured_ratio}")
        self.updates.append((candidate, float(measured_ratio)))
        if set(candidate.weight_bits.values()) - set(self._times.precisions):
            self.__post_init__()
        self._fit = None

    def save(self, path: str | Path) -> None:
        """Writes the table and the updates as JSON; the fit follows from them."""
        updates = [[candidate.to_dict(), ratio] for candidate, ratio in self.updates]
        write_json(Path(path), {**self.table.to_dict(), "updates": updates})

    @classmethod
    def load(cls, path: str | Path) -> LatencyModel:
        """Reads what `save` wrote.

        Raises:
            InputError: the file is missing, cut off or edited; names the line.
        """
        table, updates = read_table(Path(path))
        return cls(table, updates)

    def require(self, *, runtime: str, n_threads: int, batch: int, force: bool = False) -> None:
        """Refuses a table of another runtime, runtime version, number of threads, batch or device than here and now.

        Args:
            runtime: that candidates will run on.
            n_threads: that it will use.
            batch: samples in one inference.
            force: take the table all the same.

        Raises:
            InputError: it is of another one; names it and the way out.
        """
        self.table.require(runtime, n_threads, batch, force)

    def require_model(self, graph: ModelGraph) -> None:
        """Refuses a table of another model.

        Raises:
            InputError: layers, channel groups or branches are others.
        """
        require_same_model(self.table.shape, graph, str(self.table.head["task"]))

    def facts(self) -> Mapping[str, Any]:
        """Where and when the profile was made."""
        return self.table.head

    def leave_one_out_residuals(self) -> Floats:
        """1 - prediction / measured of each measured candidate by a fit to the others, shape (n_measured,)."""
        return self._fitted().residuals

    def _fitted(self) -> _Fit:
        if self._fit is None:
            candidates, ratios = zip(*self.measured, strict=True)
            self._fit = _Fit(self._times.sums(candidates).features, np.array(ratios))
        return self._fit


class _Fit:
    """Ridge regression of relative errors, its penalty and its residuals by leaving one out.

    Args:
        features: (n_measured, n_features).
        ratios: (n_measured,), positive.
    """

    def __init__(self, features: Floats, ratios: Floats) -> None:
        spread = features.std(0)
        self._used = spread > 0
        self._scale = spread[self._used]
        rows = self._rows(features) / ratios[:, None]
        fits = [_ridge(rows, penalty) for penalty in _PENALTIES]
        self._weights, self.residuals = min(fits, key=lambda fit: float(np.square(fit[1]).mean()))

    def predict(self, features: Floats) -> Floats:
        """Ratios, shape (n,)."""
        predicted: Floats = np.maximum(self._rows(features) @ self._weights, _SMALLEST_RATIO)
        return predicted

    def errors(self, level: float) -> tuple[float, float]:
        """Relative to a prediction, how far below and above it measurements are at this level (lower is negative).

        The quantile of n residuals is that of rank (n + 1) level, which covers a further one with that probability.
        Where that is beyond the largest of them, Student's t for their spread says how much further.
        """
        errors = np.sort(1 / np.maximum(1 - self.residuals, 0.1) - 1)
        n, share = len(errors), (1 + level) / 2
        rank = int(np.ceil((n + 1) * share))
        low, high = errors[max(0, n - rank)], errors[min(n, rank) - 1]
        if rank > n:
            beyond = float(student_t.ppf(share, n - 1) * np.sqrt(np.square(errors).mean() * (1 + 1 / n)))
            low, high = min(low, -beyond), max(high, beyond)
        return float(min(low, 0.0)), float(max(high, 0.0))

    def _rows(self, features: Floats) -> Floats:
        return np.concatenate([np.ones((len(features), 1)), features[:, self._used] / self._scale], 1)


def _ridge(rows: Floats, penalty: float) -> tuple[Floats, Floats]:
    """Weights w that minimise |1 - rows w|^2 + penalty |w|^2, and the leave-one-out residuals 1 - prediction.

    Args:
        rows: features divided by what they are to give, the constant first; the constant is not penalised.
        penalty: above 0.
    """
    gram = rows.T @ rows + np.diag([1e-9, *[penalty] * (rows.shape[1] - 1)])
    projection = np.linalg.solve(gram, rows.T)
    weights = projection.sum(1)
    leverage = np.einsum("ij,ji->i", rows, projection)
    return weights, (1 - rows @ weights) / np.maximum(1 - leverage, 1e-6)
