"""What a search takes from a latency model: predicted ratios, updated with each measured trial, and slow ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from autocompress.config import SearchSettings
from autocompress.files import read_json
from autocompress.graph import ModelGraph
from autocompress.latency.candidate_encoder import Floats
from autocompress.latency.model import LatencyModel
from autocompress.latency.online_model import LaunchLatencyModel
from autocompress.latency.plan import batch_size
from autocompress.latency.roofline import Estimate
from autocompress.results.records import Predicted, TrialRecord
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Choice, SearchSpace
from autocompress.task import Task
from autocompress.task_access import examples_of

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
        """Updates the model with a measured trial."""
        if record.latency is not None and np.isfinite(record.latency.ratio):
            self._model.update(record.candidate, record.latency.ratio)
            self._n_measured += 1
            if self._n_measured % _REFRESHED_EVERY == 0:
                self._refreshed = copy.deepcopy(self._model).ratios


def load_latency_model(path: str | Path) -> LatencyModel | Estimate:
    """What `autocompress profile` wrote.

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
    batch = batch_size(examples_of(task))
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
