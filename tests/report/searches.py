"""A small made-up search of a 20-layer network, as data: no model is built and nothing is measured."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from autocompress.results.records import FileNumbers, Latency, Rung, TrialRecord
from autocompress.space.candidate import Candidate

REFERENCE_MS = 0.69
BUDGET = 0.6
BASELINE_ACCURACY = 0.9173
LAYERS = ("conv1", *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in (0, 1, 2) for c in (1, 2)), "linear")
HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "\"quotes\" 'and' &amp; `ticks` ${x} $policy",
    "emoji 🧊",
    "\u202eright-to-left \u05e9\u05dc\u05d5\u05dd",
    "line\u2028separators\u2029and\x00nul",
    "lone surrogate \ud800",
)


def complete(number: int, candidate: Candidate, ratio: float, accuracy: float, origin: str = "sampler") -> TrialRecord:
    """A finished trial with the figures that its ratio and accuracy imply."""
    return TrialRecord(
        number=number,
        state="complete",
        origin=origin,
        candidate=candidate,
        metrics={"accuracy": accuracy, "loss": 1 - accuracy},
        latency=Latency(ratio, 0.02, ratio * REFERENCE_MS, 9),
        feasible=ratio <= BUDGET,
        fine_tuned=ratio <= 1.1 * BUDGET,
        n_params=int(272_474 * ratio),
        n_macs=int(40_810_000 * ratio),
        size_mib=1.05 * ratio,
        rungs=(Rung(0, {"accuracy": accuracy - 0.3}), Rung(20, {"accuracy": accuracy})),
        seconds={"compress": 0.4, "fine_tune": 11.2},
        started=10.0 * number,
        ended=10.0 * number + 12,
    )


def failed(number: int, error: str) -> TrialRecord:
    """A trial that raised."""
    candidate = Candidate(prune_ratio={"conv1": 0.5})
    return TrialRecord(
        number, "failed", "sampler", candidate, error=error, started=10.0 * number, ended=10.0 * number + 1
    )


def exported(record: TrialRecord, accuracy_on_test: float) -> TrialRecord:
    """The record with the numbers of its file."""
    assert record.latency is not None
    return record.with_file(
        FileNumbers(
            metrics={"selection": dict(record.metrics), "test": {"accuracy": accuracy_on_test, "loss": 0.31}},
            n_samples={"selection": 5000, "test": 5000},
            latency=replace(record.latency, n_rounds=25),
            size_mib=record.size_mib,
            max_abs_diff=3.1e-6,
            agreement=0.9996,
        )
    )


def records_of_a_search(seed: int = 0, n_sampled: int = 28) -> list[TrialRecord]:
    """The uncompressed model, two uniform candidates, sampled ones, and a failure."""
    random_ = random.Random(seed)
    every_layer_8_bit = dict.fromkeys(LAYERS, 8)
    pruned_alike = dict.fromkeys(LAYERS[:-1], 0.5)
    records = [
        exported(complete(0, Candidate(), 1.0, BASELINE_ACCURACY, "baseline"), 0.9169),
        complete(1, Candidate(weight_bits=every_layer_8_bit), 0.59, 0.9149, "uniform"),
        complete(2, Candidate(weight_bits=every_layer_8_bit, prune_ratio=pruned_alike), 0.45, 0.81, "uniform"),
    ]
    for number in range(3, 3 + n_sampled):
        cut = random_.uniform(0.3, 0.9)
        accuracy = BASELINE_ACCURACY - 0.06 * (1 - cut) ** 2 - random_.expovariate(60) * (8 if cut > BUDGET else 1)
        candidate = Candidate(
            prune_ratio={name: random_.choice([0.0, 0.12, 0.25, 0.5]) for name in LAYERS[1:-1:2]},
            drop=frozenset(name for name in ("layer1.2", "layer3.1") if random_.random() < 0.2),
            rank_ratio={name: 0.25 for name in LAYERS[12:19] if random_.random() < 0.4},
            weight_bits=every_layer_8_bit if random_.random() < 0.6 else dict.fromkeys(LAYERS[5:14], 8),
        )
        records.append(complete(number, candidate, cut, accuracy))
    traceback = (
        'Traceback (most recent call last):\n  File "prune.py", line 7\nCompressionError: nothing is left of layer2'
    )
    return [*records, failed(len(records), traceback)]


def hostile_records(names: Sequence[str] = HOSTILE) -> list[TrialRecord]:
    """A trial with these names in its candidate, and one with them in its traceback."""
    candidate = Candidate(
        prune_ratio=dict.fromkeys(names, 0.5),
        drop=frozenset(names),
        rank_ratio=dict.fromkeys(names, 0.5),
        weight_bits=dict.fromkeys(names, 8),
    )
    return [
        exported(complete(0, Candidate(), 1.0, 0.9), 0.9),
        complete(1, candidate, 0.5, 0.89),
        failed(2, "\n".join(names)),
    ]


def bad_searches() -> dict[str, list[TrialRecord]]:
    """Searches that leave little or nothing to choose from."""
    eight_bit = Candidate(weight_bits={"conv1": 8})
    return {
        "no trials": [],
        "one point": [complete(0, Candidate(), 1.0, 0.9)],
        "all over the budget": [complete(i, eight_bit if i else Candidate(), 1.0 - i / 10, 0.9) for i in range(3)],
        "nan": [complete(0, Candidate(), 1.0, math.nan)],
        "failed only": [failed(0, "E: x")],
        "no latency": [TrialRecord(0, "complete", "sampler", Candidate())],
    }
