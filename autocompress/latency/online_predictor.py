"""Predicted latency ratios for a search, updated with each measured trial; labels ranks that are not faster."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from sklearn.linear_model import LinearRegression

from autocompress.config import SearchSettings
from autocompress.files import read_json
from autocompress.graph import Layer, ModelGraph
from autocompress.latency.candidate_encoder import Encoder, Floats, LayerStates, ModelShape
from autocompress.latency.model import LatencyModel
from autocompress.latency.plan import batch_size
from autocompress.latency.roofline import Estimate
from autocompress.results.records import Predicted, TrialRecord
from autocompress.space.candidate import INT8_BITS, PRECISIONS, Candidate
from autocompress.space.rank_choice import parse_rank
from autocompress.space.ranks import cost, parts, ranks_of_ratio
from autocompress.space.search_space import Choice, SearchSpace
from autocompress.task import Task, as_inputs

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


_TRUSTED_AFTER = 8  # measurements after which the predicted latency itself must keep the budget
_REFRESHED_EVERY = 16  # measurements after which latencies are linearised anew

Predict = Callable[[Sequence[Candidate]], Floats]


class LatencyPredictor(Protocol):
    """A latency model in ratios to the uncompressed model: `LatencyModel`, `Estimate` or `LaunchLatencyModel`."""

    def ratios(self, candidates: Sequence[Candidate]) -> Floats:
        """Predicted ratios, shape (n_candidates,)."""

    def ratio_interval(self, candidates: Sequence[Candidate]) -> Floats:
        """Lower and upper ratios, shape (n_candidates, 2)."""

    def update(self, candidate: Candidate, measured_ratio: float) -> None:
        """Learns from a measurement."""


class OnlineLatencyPredictor:
    """Predicted latency ratios, from a model that learns from each measured trial.

    Args:
        model: of the target's latency. A `LatencyModel` was fitted to measurements of the target, so its intervals can
            be trusted from the start.
    """

    def __init__(self, model: LatencyPredictor) -> None:
        self._model = model
        self._profile = model if isinstance(model, LatencyModel) else None
        self._n_measured = 0
        self._refreshed: Predict = copy.deepcopy(model).ratios

    @classmethod
    def of(cls, settings: SearchSettings, task: Task, graph: ModelGraph) -> OnlineLatencyPredictor:
        """By the profile or estimate that the settings name; without one, by a `LaunchLatencyModel`.

        Raises:
            InputError: the profile is damaged, or of another runtime, device or model.
        """
        if settings.latency_model is None:
            return cls(LaunchLatencyModel(graph))
        return cls(profile_of_target(settings.latency_model, settings, task, graph))

    def ratios(self, candidates: Sequence[Candidate]) -> Floats:
        """Shape (n_candidates,)."""
        return self._model.ratios(candidates)

    def screening_ratio(self, candidate: Candidate) -> float:
        """The ratio that must keep the budget before a candidate is tried.

        With a profile it is the upper end of the interval, so that the budget holds with its probability. Without one
        it is the lower end until eight trials were measured, then the prediction.
        """
        if self._profile is not None:
            return float(self._profile.ratio_interval([candidate])[0, 1])
        if self._n_measured >= _TRUSTED_AFTER:
            return float(self.ratios([candidate])[0])
        return float(self._model.ratio_interval([candidate])[0, 0])

    def predicted(self, candidate: Candidate) -> Predicted | None:
        """The milliseconds that a profile predicts for a candidate; None without a profile."""
        if self._profile is None:
            return None
        low, high = self._profile.interval([candidate])[0].tolist()
        return Predicted(float(self._profile.predict([candidate])[0]), low, high)

    def refreshed(self) -> Predict:
        """Ratios as predicted after the last full sixteen measurements.

        They change seldom, and a resumed run gets the same ones.
        """
        return self._refreshed

    def learn(self, record: TrialRecord) -> None:
        """Updates the model with a measured trial; one that was not measured changes nothing."""
        if record.latency is not None:
            self.learn_ratio(record.candidate, record.latency.ratio)

    def learn_ratio(self, candidate: Candidate, ratio: float) -> None:
        """Updates the model with a measured ratio."""
        if np.isfinite(ratio):
            self._model.update(candidate, ratio)
            self._n_measured += 1
            if self._n_measured % _REFRESHED_EVERY == 0:
                self._refreshed = copy.deepcopy(self._model).ratios


def load_latency_model(path: str | Path) -> LatencyModel | Estimate:
    """Loads a profile or an estimate.

    Raises:
        InputError: the file is missing, cut off or edited; names the line.
    """
    return Estimate.load(path) if "estimate" in read_json(Path(path)) else LatencyModel.load(path)


def profile_of_target(path: str, settings: SearchSettings, task: Task, graph: ModelGraph) -> LatencyModel | Estimate:
    """A profile, or an estimate, that fits the search.

    Raises:
        InputError: it is damaged, or of another runtime, device or model.
    """
    model = load_latency_model(path)
    batch = batch_size(as_inputs(task.example_inputs()))
    forced = settings.force_latency_model
    model.require(runtime=settings.runtime, n_threads=settings.n_threads, batch=batch, force=forced)
    model.require_model(graph)
    return model


def label_slower_ranks(space: SearchSpace, profile: LatencyModel) -> SearchSpace:
    """The same space, each rank labelled size-only that, asked of its layer alone, is not predicted to save time.

    The comparison is with the prediction for the uncompressed model, not with 1: an error that both have cancels.
    A layer's time at a rank that was not measured is only an estimate by size and shows nothing: it gets no label.

    Args:
        space: of the profiled model.
        profile: of the target device.
    """
    whole = [Candidate()]
    dense, n_outside = profile.ratios(whole)[0], profile.n_outside(whole)[0]

    def is_slower(path: str, choice: Choice) -> bool:
        alone = [space.candidate({f"rank_ratio:{path}": choice})]
        return bool(profile.n_outside(alone)[0] <= n_outside and profile.ratios(alone)[0] >= dense)

    return space.label_size_only(is_slower)
