"""What a candidate and a failure read like."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from autocompress.report.wording import (
    candidate_text,
    failure_text,
    likeness_text,
    metric_text,
    over_budget_text,
    reason_text,
)
from autocompress.results.records import TrialRecord
from autocompress.space.candidate import Candidate
from tests.report.searches import complete, exported, failed
from tests.shared.objectives import of_accuracy


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (Candidate(), "uncompressed"),
        (Candidate(prune_ratio={"a": 0.25}), "25% channels off in 1 group"),
        (Candidate(prune_ratio={"a": 0.5, "b": 0.125}), "12–50% channels off in 2 groups"),
        (Candidate(drop=frozenset({"b1", "b2"})), "2 blocks dropped"),
        (Candidate(rank_ratio={"a": 0.5, "b": 0.5, "c": 1.0}), "3 low-rank"),
        (Candidate(weight_bits={"a": 8, "b": 4, "c": 8}), "1/20 layers 4-bit, 2/20 layers 8-bit"),
        (
            Candidate({"a": 0.5}, frozenset({"block"}), {"a": 0.5}, {"a": 8}),
            "1 block dropped, 50% channels off in 1 group, 1 low-rank, 1/20 layers 8-bit",
        ),
    ],
)
def test_candidate_text(candidate: Candidate, expected: str) -> None:
    assert candidate_text(candidate, 20) == expected


def test_metrics_read_as_shares_only_when_they_are() -> None:
    assert metric_text(0.9173, "accuracy") == "91.73%"
    assert metric_text(0.9173, "f1") == "0.9173"
    assert metric_text(math.nan, "accuracy") == metric_text(None, "f1") == "–"


def test_a_failure_is_its_tracebacks_last_line() -> None:
    assert failure_text(failed(1, "Traceback:\n  x = 1\nValueError: no\n\n")) == "ValueError: no"
    assert failure_text(failed(1, "")) == "failed without a message"


def test_why_a_trial_is_over_the_budget() -> None:
    tuned = complete(1, Candidate(), 0.62, 0.9)
    untuned = complete(1, Candidate(), 0.9, 0.9)
    assert over_budget_text(tuned, 0.6) == "0.62x is over the budget of 0.6x"
    assert over_budget_text(untuned, 0.6).endswith("so it was not fine-tuned")
    assert over_budget_text(exported(complete(1, Candidate(), 0.55, 0.9), 0.9), 0.5).startswith(
        "within the budget during the search"
    )


def test_a_trial_without_a_latency_is_over_any_budget_but_not_over_none() -> None:
    record = TrialRecord(1, "complete", "sampler", Candidate({"a": 0.5}))
    assert reason_text(record, of_accuracy(5.0)) == "no latency was measured"
    assert reason_text(record, of_accuracy()) is None


def test_every_trial_off_the_front_has_its_reason() -> None:
    pruned = complete(1, Candidate({"a": 0.5}), 0.5, 0.4)
    assert reason_text(pruned, of_accuracy(0.6)) is None
    assert (
        reason_text(pruned, of_accuracy(0.6, metric_limit=0.45))
        == "accuracy 40.00% is worse than the worst useful 0.45"
    )
    assert str(reason_text(pruned, of_accuracy(0.4, metric_limit=0.45))).endswith("0.5x is over the budget of 0.4x")
    assert reason_text(complete(0, Candidate(), 1.0, 0.9), of_accuracy(0.4)) is None, "the uncompressed model is shown"
    assert reason_text(replace(pruned, state="stopped"), of_accuracy()) is None, "it is a point like any other"
    assert reason_text(failed(1, "E: x"), of_accuracy()) == "E: x"


def test_agreement_is_a_share_that_says_it_is_not_accuracy() -> None:
    assert metric_text(0.9173, "agreement") == "91.73%"
    assert "it is not accuracy" in str(likeness_text("agreement"))
    assert likeness_text("accuracy") is None
