"""Proposals that a kill does not change, and that cost the same however long the search has lasted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from autocompress.results.records import Latency, TrialRecord
from autocompress.sampling.reseeded_sampler import (
    BestAndRecentView,
    GenerationsView,
    ReseededSampler,
    StudyView,
    best_of,
)
from autocompress.sampling.samplers import sampler_named
from autocompress.sampling.study import Asked, SearchStudy
from autocompress.space.search_space import Knob, SearchSpace
from tests.shared.objectives import of_accuracy

SPACE = SearchSpace(tuple(Knob("weight_bits", f"layer{i}", (32, 8, 4)) for i in range(8)))


def opened(path: Path, sampler: str) -> SearchStudy:
    return SearchStudy(path, SPACE, sampler_named(sampler, 3), of_accuracy(0.8))


def judged(asked: Asked) -> TrialRecord:
    candidate = asked.candidate
    bits = [candidate.weight_bits.get(knob.target, 32) for knob in SPACE.knobs]
    ratio = sum(bits) / (32 * len(bits))
    accuracy = sum(min(8, b) * (i + 1) for i, b in enumerate(bits)) / 288
    latency = Latency(ratio, 0.0, ratio, 9)
    return TrialRecord(asked.number, "complete", asked.origin, candidate, {"accuracy": accuracy}, latency)


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_a_search_that_was_killed_goes_on_as_an_undisturbed_one_would(sampler: str, tmp_path: Path) -> None:
    whole = opened(tmp_path / "whole", sampler)
    expected = []
    for _ in range(24):
        asked = whole.ask()
        assert asked is not None
        expected.append(asked.candidate.digest)
        whole.tell(judged(asked))
    found: list[str] = []
    study = opened(tmp_path / "killed", sampler)
    while len(found) < 24:
        asked = study.ask()
        assert asked is not None
        if len(found) in (3, 9, 10, 17):  # killed while this one ran, some of them twice
            for _ in range(1 + len(found) % 2):
                study = opened(tmp_path / "killed", sampler)
                assert study.requeue_interrupted() == 1
                again = study.ask()
                assert again is not None and again.candidate == asked.candidate
                asked = again
        found.append(asked.candidate.digest)
        study.tell(judged(asked))
    assert found == expected


def trial_of(number: int, values: tuple[float, float], excess: float) -> optuna.trial.FrozenTrial:
    trial = create_trial(values=list(values), system_attrs={"constraints": [excess]})
    trial.number = number
    return trial


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from([-1.0, 0.0, 1.0, 2.0])), min_size=1, max_size=20
    ),
    st.integers(1, 20),
)
def test_the_best_by_hand(points: list[tuple[int, int, float]], n: int) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    trials = [trial_of(i, (a, b), excess) for i, (a, b, excess) in enumerate(points)]

    def rank(i: int, among: set[int]) -> int:
        """How many fronts must go before this one is not dominated: counted one after the other."""
        for front in range(len(points)):
            free = {
                j
                for j in among
                if not any(
                    points[k][0] >= points[j][0] and points[k][1] <= points[j][1] and points[k][:2] != points[j][:2]
                    for k in among
                )
            }
            if i in free:
                return front
            among = among - free
        raise AssertionError

    feasible = {i for i, point in enumerate(points) if point[2] <= 0}
    keys = {
        i: (max(0.0, point[2]), rank(i, feasible) if i in feasible else len(points), -i)
        for i, point in enumerate(points)
    }
    expected = sorted(keys, key=lambda i: keys[i])[:n]
    assert [trial.number for trial in best_of(trials, study, n)] == expected


def test_a_long_search_is_seen_through_its_best_and_its_latest() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    window = BestAndRecentView(study, n=8)
    window.update()
    assert window.get_trials() == []
    for i in range(200):
        trial = study.ask({"x": IntDistribution(0, 9)})
        study.tell(trial, [100.0 if i == 20 else float(i % 7), 1.0])
        window.ended(trial.number)
        if i % 3 == 0:
            window.update()
        if i == 21:
            assert len(window.get_trials(deepcopy=False)) == 22, "all, as they are few"
    running = [study.ask({"x": IntDistribution(0, 9)}).number for _ in range(20)]
    window.update()
    shown = [trial.number for trial in window.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    assert shown == sorted(set(shown)) and len(shown) <= 3 * 8
    assert 20 in shown, "the best of all"
    assert set(range(192, 200)) <= set(shown), "the latest"
    seen = [trial.number for trial in window._get_trials(False, [TrialState.COMPLETE, TrialState.RUNNING])]
    assert seen == shown + running[-8:], "and the latest that run"
    assert window.directions == study.directions and window.whole is study, "all else is the study's"
    assert len(BestAndRecentView(study)._new) == 200, "a resumed search takes the same in"


class AllTrials(StudyView):
    def _take(self, trial: optuna.trial.FrozenTrial) -> None:
        pass

    def _shown(self, states: object) -> None:
        return None


def nsga2_proposals(view: type[StudyView], n_running: int, seed: int) -> list[dict[str, int]]:
    """Of trials that end in an order of their own, some infeasible, some failed."""
    rng = np.random.default_rng(seed)

    def make(drawn: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.NSGAIISampler(seed=drawn, population_size=4)

    study = optuna.create_study(directions=["maximize", "minimize"], sampler=ReseededSampler(make, seed, view))
    study.enqueue_trial(dict.fromkeys("abc", 3))
    running: list[optuna.Trial] = []
    asked = []
    for _ in range(90):
        trial = study.ask({name: IntDistribution(0, 7) for name in "abc"})
        asked.append(trial.params)
        running.append(trial)
        if len(running) < n_running:
            continue
        ended = running.pop(int(rng.integers(n_running)))
        a, b, c = (ended.params[name] for name in "abc")
        if (a + b + c) % 11 == 0:
            study.tell(ended, state=TrialState.FAIL)
        elif (a + b) % 7 == 0:
            ended.set_constraint("latency", 1.0)
            study.tell(ended, state=TrialState.PRUNED)
        else:
            ended.set_constraint("latency", a - 4.0)
            study.tell(ended, [a * b - c, b + c * c])
    return asked


@settings(max_examples=6, deadline=None)
@given(st.sampled_from([1, 3, 20]), st.integers(0, 1000))
def test_nsga2_proposes_of_its_last_generations_what_it_would_of_all(n_running: int, seed: int) -> None:
    assert nsga2_proposals(GenerationsView, n_running, seed) == nsga2_proposals(AllTrials, n_running, seed)


def test_generations_are_few_however_many_trials_there_were() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    view = GenerationsView(study)
    study.sampler = optuna.samplers.NSGAIISampler(seed=0, population_size=4)
    for i in range(60):
        trial = study.ask({"x": IntDistribution(0, 9)})
        study.tell(trial, [float(i % 7), 1.0])
        view.ended(trial.number)
    view.update()
    shown = [trial.number for trial in view._get_trials(False, [TrialState.COMPLETE])]
    assert shown == list(range(52, 60)), "two generations of four"


class Counting(optuna.samplers.RandomSampler):
    """Notes how often it is asked for the knobs."""

    n_asked = 0

    def infer_relative_search_space(self, study: object, trial: object) -> dict[str, BaseDistribution]:
        type(self).n_asked += 1
        return {} if self.n_asked < 3 else {"x": IntDistribution(0, 9)}

    def sample_relative(
        self, study: object, trial: object, search_space: dict[str, BaseDistribution]
    ) -> dict[str, int]:
        return dict.fromkeys(search_space, 5)


def test_the_knobs_are_asked_for_until_they_are_known() -> None:
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=ReseededSampler(Counting, 0, BestAndRecentView)
    )
    found = []
    for _ in range(9):
        trial = study.ask({"x": IntDistribution(0, 9)})
        found.append(trial.params["x"])
        study.tell(trial, [1.0, 1.0])
    assert found[2:] == [5] * 7 and Counting.n_asked == 3
