"""Processor time of the knapsack, and of asking and telling the default sampler up to 1,000 trials."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from autocompress.execution.planning import planner_of
from autocompress.execution.sensitivity import ChoiceLoss, Sensitivity, single_choices
from autocompress.graph import inspect_model
from autocompress.latency.online_predictor import LaunchLatencyModel, OnlineLatencyPredictor
from autocompress.results.objectives import Objectives
from autocompress.results.records import Latency, TrialRecord
from autocompress.sampling.knapsack import knapsack
from autocompress.sampling.samplers import PLANNED, planned, sampler_named
from autocompress.sampling.study import Asked, SearchStudy
from autocompress.space.search_space import SearchSpace
from autocompress.task import load_task


def knapsack_seconds() -> float:
    rng = np.random.default_rng(0)
    costs, latencies = ([rng.random(30) for _ in range(60)] for _ in range(2))
    begin = time.process_time()
    knapsack(costs, latencies, 30.0, 1000)
    return time.process_time() - begin


def sampler_ms() -> dict[int, float]:
    """ResNet-20's space, made-up metrics; mean of the 10 asks and tells up to each number of trials."""
    task = load_task("cifar10:resnet20")
    graph = inspect_model(task.build_model(), task.example_inputs())
    space = SearchSpace.load("resnet_cifar", graph)
    rng = np.random.default_rng(0)
    single = tuple(ChoiceLoss(k.kind, k.target, c, float(rng.random())) for k, c, _ in single_choices(space))
    latency_predictor = OnlineLatencyPredictor(LaunchLatencyModel(graph))
    study = SearchStudy(
        None,
        space,
        sampler_named(PLANNED, 0),
        Objectives("accuracy", latency_budgets=(0.5,)),
        latency_predictor.screening_ratio,
    )
    study.use(planned(planner_of(study, Sensitivity(0.1, single), latency_predictor), 0))
    times: list[float] = []
    result: dict[int, float] = {}
    for i in range(1, 1001):
        if i % 250 >= 240 or i % 250 == 0:
            begin = time.process_time()
            ask_and_tell(study, latency_predictor, rng)
            times.append(time.process_time() - begin)
            if i % 250 == 0:
                result[i] = round(1000 * float(np.mean(times)), 1)
                times = []
        else:
            add_random(study, latency_predictor, rng, i)
    return result


def ask_and_tell(study: SearchStudy, latency_predictor: OnlineLatencyPredictor, rng: np.random.Generator) -> None:
    asked = study.ask() or Asked(0, study.space.baseline(), "")
    tell(study, latency_predictor, asked, rng)


def add_random(study: SearchStudy, latency_predictor: OnlineLatencyPredictor, rng: np.random.Generator, i: int) -> None:
    """A trial that nobody had to think about."""
    candidate = study.space.sample(i)
    latency = Latency(float(latency_predictor.ratios([candidate])[0]), 0.0, 1.0, 9)
    study.add(TrialRecord(i - 1, "complete", "x", candidate, {"accuracy": float(rng.random())}, latency))


def tell(study: SearchStudy, latency_predictor: OnlineLatencyPredictor, asked: Asked, rng: np.random.Generator) -> None:
    latency = Latency(float(latency_predictor.ratios([asked.candidate])[0]), 0.0, 1.0, 9)
    metrics = {"accuracy": float(rng.random())}
    record = TrialRecord(asked.number, "complete", asked.origin, asked.candidate, metrics, latency)
    study.tell(record)
    latency_predictor.learn(record)


if __name__ == "__main__":
    figures = {
        "knapsack, 60 x 30 x 1,000, seconds": round(knapsack_seconds(), 3),
        "ask and tell at so many trials, ms of processor time": sampler_ms(),
    }
    print(figures)
    (Path(__file__).parent / "overhead.json").write_text(json.dumps(figures, indent=1) + "\n")
