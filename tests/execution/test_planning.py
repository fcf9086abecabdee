"""What a search starts from: the solver's candidates, spread over the front, and a latency model that learns."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.samplers import RandomSampler

from autocompress.execution.planning import (
    enqueue_knapsack_front,
    enqueue_uniform,
    middle_first,
    n_knapsack_candidates,
    planner_of,
)
from autocompress.execution.sensitivity import ChoiceLoss, Sensitivity, single_choices
from autocompress.graph import inspect_model
from autocompress.latency.online_predictor import LaunchLatencyModel, OnlineLatencyPredictor
from autocompress.results.records import WHOLE_MODEL, Latency, TrialRecord
from autocompress.sampling.samplers import planned
from autocompress.sampling.study import Asked, SearchStudy
from autocompress.space.candidate import Candidate
from tests.shared.objectives import of_accuracy
from tests.shared.tasks import images, tiny_space, trained_model

SPACE = tiny_space()
GRAPH = inspect_model(trained_model(), (images(1, 0)[0],))
SENSITIVITY = Sensitivity(
    0.1,
    tuple(
        ChoiceLoss(k.kind, k.target, choice, 0.1 * (i + 1)) for i, (k, choice, _) in enumerate(single_choices(SPACE))
    ),
)


def record(candidate: Candidate, ratio: float) -> TrialRecord:
    return TrialRecord(0, "complete", "sampler", candidate, latency=Latency(ratio, 0.0, 1.0, 9))


def study(budget: float | None = None) -> SearchStudy:
    return SearchStudy(None, SPACE, RandomSampler(seed=0), of_accuracy(budget))


def asked(study: SearchStudy, n: int) -> list[Asked]:
    return [item for _ in range(n) if (item := study.ask()) is not None]


def test_the_solvers_candidates_come_after_a_few_uniform_ones() -> None:
    search, latency_predictor = study(0.9), OnlineLatencyPredictor(LaunchLatencyModel(GRAPH))
    enqueue_knapsack_front(search, SENSITIVITY, latency_predictor, 6)
    origins = [item.origin for item in asked(search, 10)]
    assert origins[:2] == ["uniform", "uniform"]
    assert 2 <= origins.count("solver") <= 6
    assert "sampler" in origins, "then the sampler proposes"


@pytest.mark.parametrize(("n_trials", "n"), [(1, 1), (9, 3), (24, 8), (100_000, 8)])
def test_a_third_of_a_short_search_is_solved(n_trials: int, n: int) -> None:
    assert n_knapsack_candidates(n_trials) == n


def test_what_the_solver_proposes_is_within_the_budget_and_different() -> None:
    search, latency_predictor = study(0.6), OnlineLatencyPredictor(LaunchLatencyModel(GRAPH))
    enqueue_knapsack_front(search, SENSITIVITY, latency_predictor, 10)
    solved = [item.candidate for item in asked(search, 12) if item.origin == "solver"]
    assert solved and len({candidate.digest for candidate in solved}) == len(solved)
    assert (latency_predictor.ratios(solved) <= 0.6).all()


def test_without_a_budget_no_plan_is_much_slower_than_the_runtimes_own_precision() -> None:
    def slowest(whole_model: float | None) -> float:
        search, latency_predictor = study(), OnlineLatencyPredictor(LaunchLatencyModel(GRAPH))
        if whole_model is not None:
            eight_bits = Candidate(weight_bits=dict.fromkeys((layer.path for layer in GRAPH.layers), 8))
            found = TrialRecord(
                search.next_number,
                "complete",
                WHOLE_MODEL,
                eight_bits,
                {"accuracy": 0.9},
                Latency(whole_model, 0.0, 1.0, 9),
                True,
            )
            search.add(found)
        enqueue_knapsack_front(search, SENSITIVITY, latency_predictor, 10)
        solved = [item.candidate for item in asked(search, 12) if item.origin == "solver"]
        return float(latency_predictor.ratios(solved).max())

    assert slowest(None) > 0.65
    assert slowest(0.5) <= 0.625 < slowest(0.9)


def test_other_samplers_start_from_uniform_candidates() -> None:
    search = study()
    enqueue_uniform(search, 12)
    assert {item.origin for item in asked(search, 3)} == {"uniform"}


def test_predictions_are_trusted_once_some_trials_were_measured() -> None:
    latency_predictor = OnlineLatencyPredictor(LaunchLatencyModel(GRAPH))
    candidate = SPACE.uniform(weight_bits=8)
    point = float(latency_predictor.ratios([candidate])[0])
    assert latency_predictor.screening_ratio(candidate) < point, "the benefit of the doubt"
    for seed in range(8):
        latency_predictor.learn(record(SPACE.sample(seed), 0.5))
    assert latency_predictor.screening_ratio(candidate) == float(latency_predictor.ratios([candidate])[0])
    assert latency_predictor.screening_ratio(candidate) != point, "and the model has learned"


def test_failed_and_unmeasured_trials_teach_nothing() -> None:
    latency_predictor = OnlineLatencyPredictor(LaunchLatencyModel(GRAPH))
    before = latency_predictor.ratios([SPACE.sample(1)])
    latency_predictor.learn(TrialRecord(0, "failed", "sampler", SPACE.sample(2)))
    latency_predictor.learn(record(SPACE.sample(2), float("nan")))
    assert (latency_predictor.ratios([SPACE.sample(1)]) == before).all()


def test_the_first_of_an_order_cover_the_whole() -> None:
    candidates = [Candidate({"a": (i + 1) / 100}) for i in range(15)]
    ordered = middle_first(candidates)
    assert sorted(candidate.prune_ratio["a"] for candidate in ordered) == [c.prune_ratio["a"] for c in candidates]
    assert [round(100 * candidate.prune_ratio["a"]) for candidate in ordered[:3]] == [8, 4, 12]


def test_a_plan_proposes_within_the_space() -> None:
    search = study()
    planner = planner_of(search, SENSITIVITY, OnlineLatencyPredictor(LaunchLatencyModel(GRAPH)))
    assert planner.space is SPACE


class Search:
    """A search as the driver runs one, with made-up trials; made again from its journal after a kill."""

    def __init__(self, path: Path) -> None:
        self.latency_predictor = OnlineLatencyPredictor(LaunchLatencyModel(GRAPH))
        self.study = SearchStudy(
            path, SPACE, RandomSampler(seed=0), of_accuracy(0.9), predict=self.latency_predictor.screening_ratio
        )
        known = self.study.records()
        self.study.requeue_interrupted()
        for item in known:
            self.latency_predictor.learn(item)
        self.study.use(planned(planner_of(self.study, SENSITIVITY, self.latency_predictor), 5))
        if not known:
            enqueue_knapsack_front(self.study, SENSITIVITY, self.latency_predictor, 3)

    def step(self, killed: bool = False) -> str | None:
        """One trial; a killed one leaves it open."""
        item = self.study.ask()
        assert item is not None
        candidate = item.candidate
        if not killed:
            ratio = 0.3 + 0.5 * int(candidate.digest, 16) / 16**12  # of its own, so that the latency model must learn
            accuracy = 0.9 * ratio
            latency = Latency(ratio, 0.0, ratio, 9)
            done = TrialRecord(item.number, "complete", item.origin, candidate, {"accuracy": accuracy}, latency)
            self.study.tell(self.study.judged(done))
            self.latency_predictor.learn(done)
        return candidate.digest


def test_a_resumed_search_proposes_what_an_undisturbed_one_would(tmp_path: Path) -> None:
    whole = Search(tmp_path / "whole")
    expected = [whole.step() for _ in range(40)]
    found: list[str | None] = []
    search = Search(tmp_path / "killed")
    while len(found) < 40:
        if len(found) in (7, 19, 30):  # between and just before the latency model is linearised anew
            search.step(killed=True)
            search = Search(tmp_path / "killed")
        found.append(search.step())
    assert found == expected
