"""Columns of a point: predicted and measured latency."""

from __future__ import annotations

import math

from autocompress.results.columns import row
from autocompress.results.records import Latency, Predicted, TrialRecord
from autocompress.space.candidate import Candidate


def test_the_predicted_latency_is_a_column() -> None:
    latency = Latency(0.5, 0.01, 1.0, 9)
    without = TrialRecord(1, "complete", "sampler", Candidate(), {"accuracy": 0.9}, latency)
    foreseen = TrialRecord(
        2, "complete", "sampler", Candidate(), {"accuracy": 0.9}, latency, predicted=Predicted(1.1, 1.0, 1.3)
    )
    assert math.isnan(float(str(row(without, "accuracy")["latency_predicted_ms"])))
    cells = row(foreseen, "accuracy")
    assert (cells["latency_ms"], cells["latency_predicted_ms"]) == (1.0, 1.1)
