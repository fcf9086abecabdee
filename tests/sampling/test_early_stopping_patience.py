"""Patience counts trials without gain; infeasible and failed ones are no gain."""

from __future__ import annotations

from dataclasses import replace

from autocompress.results.records import Latency, TrialRecord
from autocompress.sampling.early_stopping import Patience
from autocompress.space.candidate import Candidate
from tests.shared.objectives import of_accuracy


def record(ratio: float, accuracy: float, feasible: bool = True) -> TrialRecord:
    return TrialRecord(
        0,
        "complete",
        "sampler",
        Candidate(),
        metrics={"accuracy": accuracy},
        latency=Latency(ratio, 0.0, 1.0, 9),
        feasible=feasible,
    )


def test_it_is_over_after_so_many_trials_without_gain() -> None:
    patience = Patience(3, of_accuracy(0.5, metric_limit=0.5))
    for ratio, accuracy in ((0.4, 0.8), (0.45, 0.8), (0.4, 0.7)):
        patience.update(record(ratio, accuracy))
    assert not patience.over
    patience.update(record(0.3, 0.8))
    for _ in range(2):
        patience.update(replace(record(0.1, 0.99), state="failed"))
    assert not patience.over, "the gain before them began the count anew"
    patience.update(record(0.1, 0.99, feasible=False))
    assert patience.over


def test_a_gain_of_less_than_a_thousandth_is_noise() -> None:
    patience = Patience(2, of_accuracy())
    for i in range(3):
        patience.update(record(0.4 - i * 1e-5, 0.8))
    assert patience.over
