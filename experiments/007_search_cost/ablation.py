"""Replays searches with several samplers and seeds: hypervolume over trials and over worker-seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import BaseSampler

from autocompress.execution.planning import (
    enqueue_knapsack_front,
    n_knapsack_candidates,
    planner_of,
)
from autocompress.execution.sensitivity import Sensitivity
from autocompress.graph import ModelGraph
from autocompress.latency.online_predictor import LaunchLatencyModel, OnlineLatencyPredictor
from autocompress.results.objectives import Objectives, ratio
from autocompress.results.pareto import hypervolume
from autocompress.results.records import Latency, TrialRecord
from autocompress.sampling.early_stopping import ParetoEarlyStopping
from autocompress.sampling.initial_candidates import uniform_candidates
from autocompress.sampling.samplers import planned, sampler_named
from autocompress.sampling.study import SearchStudy
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.testing.replay import EarlyStopping, Evaluation, replay

Floats = NDArray[np.float64]
STOCK = ("tpe", "nsga2", "random")
SAMPLERS = ("solver", "solver only", "random", "nsga2", "uniform", "tpe")


@dataclass(frozen=True)
class Problem:
    """What all searches of a comparison share.

    Attributes:
        corner: reference point (latency ratio, accuracy); nothing beyond it counts.
        sensitivity_seconds: worker-seconds that measuring the sensitivities took.
    """

    space: SearchSpace
    graph: ModelGraph
    evaluate: Callable[[Candidate], Evaluation]
    sensitivity: Sensitivity
    corner: tuple[float, float]
    sensitivity_seconds: float = 0.0


def search(
    problem: Problem, who: str, seed: int, n_trials: int, n_workers: int = 1, stopping: EarlyStopping | None = None
) -> list[TrialRecord]:
    """One replayed search: the uncompressed model is known, then `n_trials` are evaluated.

    Args:
        who: a stock sampler as it comes; "uniform": the uniform grid alone; "solver only": the
            solver's front alone; "solver": the default.
    """
    space, ours = problem.space, who.startswith("solver")
    latency_predictor = OnlineLatencyPredictor(LaunchLatencyModel(problem.graph))
    study = Learning(
        space,
        sampler_named(who if who in STOCK else "random", seed),
        problem.corner[1],
        latency_predictor if ours else None,
    )
    study.add(baseline_record(problem))
    if who == "uniform":
        grid = uniform_candidates(space, 3 * n_trials)
        study.enqueue(grid, "uniform")
        n_trials = min(n_trials, len(grid))
    elif ours:
        study.use(planned(planner_of(study, problem.sensitivity, latency_predictor), seed))
        n_first = n_trials if who == "solver only" else n_knapsack_candidates(n_trials)
        enqueue_knapsack_front(study, problem.sensitivity, latency_predictor, n_first)
    records = replay(study, problem.evaluate, n_trials, n_workers, stopping)
    return [r for r in records if r.origin in ("uniform", "solver")] if who == "solver only" else records


class Learning(SearchStudy):
    """A study in memory whose latency model learns from each trial, as the driver's does."""

    def __init__(
        self, space: SearchSpace, sampler: BaseSampler, floor: float, latency_predictor: OnlineLatencyPredictor | None
    ) -> None:
        predict = None if latency_predictor is None else latency_predictor.screening_ratio
        super().__init__(None, space, sampler, Objectives("accuracy", metric_limit=floor), predict)
        self._latency_predictor = latency_predictor

    def tell(self, record: TrialRecord) -> None:
        super().tell(record)
        if self._latency_predictor is not None:
            self._latency_predictor.learn(record)


def baseline_record(problem: Problem) -> TrialRecord:
    known = problem.evaluate(Candidate())
    metrics = known.rungs[-1].metrics
    return TrialRecord(0, "complete", "baseline", Candidate(), metrics, Latency(1.0, 0, 1.0, 0), rungs=known.rungs)


def curve(problem: Problem, records: list[TrialRecord], n: int) -> Floats:
    """Hypervolume after 1 to n trials, in the order in which they ended; failed ones add nothing."""
    corner = (problem.corner[0], -problem.corner[1])
    points = [[1.0, -baseline_record(problem).metrics["accuracy"]]]
    areas = []
    for record in records:
        if record.is_point:
            points.append([ratio(record), -record.metrics["accuracy"]])
        areas.append(hypervolume(np.array(points), corner))
    return np.array(areas + areas[-1:] * (n - len(areas)))[:n]


def saved_and_kept(
    orders: Sequence[Sequence[Evaluation]], corner: tuple[float, float], keep_fraction: float
) -> dict[str, Any]:
    """What early stopping does to trials in these orders, against finishing all of them.

    Args:
        orders: evaluations with all their rungs, one order for each repeat.
        corner: reference point (latency ratio, accuracy).
        keep_fraction: share that continues at each rung.
    """
    savings, kept = [], []
    for order in orders:
        rule, steps, points, full = ParetoEarlyStopping(Objectives("accuracy"), keep_fraction), 0, [], []
        for own in order:
            for n, rung in enumerate(own.rungs, start=1):
                last = n == len(own.rungs)
                if last or not rule.should_continue(
                    own.candidate.digest, rung.steps, rung.metrics["accuracy"], own.latency.ratio
                ):
                    break
            steps += rung.steps
            points.append([own.latency.ratio, -max(r.metrics["accuracy"] for r in own.rungs[:n])])
            full.append([own.latency.ratio, -max(r.metrics["accuracy"] for r in own.rungs)])
        savings.append(sum(own.rungs[-1].steps for own in order) / steps)
        areas = [hypervolume(np.array(found), (corner[0], -corner[1])) for found in (points, full)]
        kept.append(areas[0] / areas[1])
    return {
        "fine-tune steps saved, times, median (min, max)": [round(float(f(savings)), 2) for f in (np.median, min, max)],
        "hypervolume kept, median (min, max)": [round(float(f(kept)), 4) for f in (np.median, min, max)],
    }


def first_at(curve_: Floats, level: float) -> float:
    """Trials until the curve reaches a level; infinite if it never does."""
    reached = np.flatnonzero(curve_ >= level - 1e-12)
    return float(reached[0] + 1) if len(reached) else float("inf")
