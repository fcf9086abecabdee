"""Proposals that a kill does not change, and that cost the same however long the search has lasted."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from autocompress.proposing import repeatable
from autocompress.proposing.repeatable import Repeatable, Window, best_of
from autocompress.proposing.samplers import sampler_named
from autocompress.proposing.study import SearchStudy
from autocompress.records import Latency, TrialRecord
from autocompress.space import Knob, SearchSpace

SPACE = SearchSpace(tuple(Knob("weight_bits", f"layer{i}", (32, 8, 4)) for i in range(8)))


def opened(path: Path, sampler: str) -> SearchStudy:
    return SearchStudy(path, SPACE, sampler_named(sampler, 3), "accuracy", 0.8)


def judged(asked: tuple[int, object, str]) -> TrialRecord:
    number, candidate, origin = asked
    bits = [candidate.weight_bits.get(knob.target, 32) for knob in SPACE.knobs]  # type: ignore[attr-defined]
    ratio = sum(bits) / (32 * len(bits))
    accuracy = sum(min(8, b) * (i + 1) for i, b in enumerate(bits)) / 288
    latency = Latency(ratio, 0.0, ratio, 9)
    return TrialRecord(number, "complete", origin, candidate, {"accuracy": accuracy}, latency)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", ["random", "tpe"])  # nsga2 forgets of which generation a trial that runs again was
def test_a_search_that_was_killed_goes_on_as_an_undisturbed_one_would(sampler: str, tmp_path: Path) -> None:
    whole = opened(tmp_path / "whole", sampler)
    expected = []
    for _ in range(24):
        asked = whole.ask()
        assert asked is not None
        expected.append(asked[1].digest)
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
                assert again is not None and again[1] == asked[1]
                asked = again
        found.append(asked[1].digest)
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


def test_a_long_search_is_seen_through_its_best_and_its_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeatable, "_N_BEST", 8)
    monkeypatch.setattr(repeatable, "_N_LATEST", 8)
    study = optuna.create_study(directions=["maximize", "minimize"])
    window = Window(study)
    assert not window.overflows
    for i in range(200):
        trial = study.ask({"x": IntDistribution(0, 9)})
        study.tell(trial, [100.0 if i == 20 else float(i % 7), 1.0])
        window.ended(trial.number)
        if i % 3 == 0:
            window.update()
    window.update()
    shown = [trial.number for trial in window.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    assert window.overflows and shown == sorted(set(shown)) and len(shown) <= 3 * 8
    assert 20 in shown, "the best of all"
    assert set(range(192, 200)) <= set(shown), "the latest"
    assert window.directions == study.directions, "all else is the study's"
    assert len(Window(study)._new) == 200, "a resumed search takes the same in"


def test_the_long_sampler_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeatable, "_N_BEST", 4)
    monkeypatch.setattr(repeatable, "_N_LATEST", 4)
    made: list[str] = []

    def make(name: str) -> repeatable.Make:
        def sampler(seed: int) -> optuna.samplers.BaseSampler:
            made.append(name)
            return optuna.samplers.RandomSampler(seed=seed)

        return sampler

    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=Repeatable(make("short"), 0, make_long=make("long"))
    )
    for _ in range(15):
        trial = study.ask({"x": IntDistribution(0, 9)})
        study.tell(trial, [1.0, 1.0])
    assert made == ["short"] * 14 + ["long"] * 2, "one when it was made, then one for each proposal"
