"""Records in a few plain words: a figure, a budget, what a candidate does to a model, why a trial fell out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection

from rich.text import Text

from autocompress.files import printable
from autocompress.results.objectives import Objectives, ratio
from autocompress.results.records import TrialRecord
from autocompress.space.candidate import Candidate, bits_number

NOTHING = "–"


LIKENESS = ("agreement", "cosine", "spearman_to_teacher")
"""Metrics that compare with the uncompressed model, for want of labels."""


def likeness_text(metric: str) -> str | None:
    """What a reader must know of a metric that no labels stand behind; None for others."""
    if metric not in LIKENESS:
        return None
    return f"{metric} says how like the uncompressed model each model is; it is not accuracy, which needs labels"


def plain_text(text: str) -> Text:
    """For a terminal: square brackets are no markup, and nothing changes the terminal."""
    return Text(printable(text))


def is_share(metric: str) -> bool:
    """True for a metric that counts right answers, so that it reads as a percentage and has a Wilson interval."""
    return metric in ("accuracy", "agreement") or metric.endswith("_accuracy")


def is_number(value: float | None) -> bool:
    """False for None (a NaN that went through a file), NaN and infinities."""
    return value is not None and math.isfinite(value)


def metric_text(value: float | None, metric: str) -> str:
    """`91.73%` for a share, four digits for any other metric, a dash when there is no value."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{100 * value:.2f}%" if is_share(metric) else f"{value:.4g}"


def budget_text(objectives: Objectives) -> str:
    """The latency budget as a share of the uncompressed latency and in milliseconds."""
    budget = objectives.budget
    if budget is None:
        return "no latency budget"
    return f"latency budget {budget:.3g}x of the uncompressed model = {budget * objectives.reference_ms:.3g} ms"


def candidate_text(candidate: Candidate, n_layers: int = 0) -> str:
    """What is done to the model, like `12–50% channels off in 5 groups, 3 low-rank, 20/20 layers 8-bit`."""
    if candidate.is_baseline:
        return "uncompressed"
    parts = []
    if candidate.drop:
        parts.append(f"{len(candidate.drop)} {_plural('block', candidate.drop)} dropped")
    if candidate.prune_ratio:
        low, high = (f"{100 * edge(candidate.prune_ratio.values()):.0f}" for edge in (min, max))
        share = low if low == high else f"{low}–{high}"
        groups = _plural("group", candidate.prune_ratio)
        parts.append(f"{share}% channels off in {len(candidate.prune_ratio)} {groups}")
    if candidate.rank_ratio:
        parts.append(f"{len(candidate.rank_ratio)} low-rank")
    if candidate.sparsity:
        parts.append(f"{len(candidate.sparsity)} sparse")
    for bits, count in sorted(Counter(candidate.weight_bits.values()).items(), key=lambda item: bits_number(item[0])):
        of = f"/{max(n_layers, count)}" if n_layers else ""
        parts.append(f"{count}{of} layers {bits}-bit")
    return ", ".join(parts)


def _plural(word: str, items: Collection[object]) -> str:
    return word if len(items) == 1 else word + "s"


def failure_text(record: TrialRecord) -> str:
    """The last line of the traceback that says something: the error itself."""
    lines = [line.strip() for line in (record.error or "").splitlines() if line.strip()]
    return lines[-1] if lines else "failed without a message"


def reason_text(record: TrialRecord, objectives: Objectives) -> str | None:
    """Why a trial cannot be on the front; None for one that could, and for the uncompressed model."""
    if record.state == "failed":
        return failure_text(record)
    if record.candidate.is_baseline:
        return None
    if objectives.budget is not None and not ratio(record) <= objectives.budget:
        return over_budget_text(record, objectives.budget)
    if objectives.metric_limit is not None and not objectives.is_useful(record):
        value = metric_text(objectives.score_of(record), objectives.metric)
        return f"{objectives.metric} {value} is worse than the worst useful {objectives.metric_limit:.4g}"
    return None


def stopped_text(record: TrialRecord) -> str:
    """After which rung a trial was stopped early."""
    n_steps = record.rungs[-1].steps if record.rungs else 0
    return f"stopped after {n_steps} steps of fine-tuning, since others were better by then; `refine` trains it longer"


def over_budget_text(record: TrialRecord, budget_ratio: float) -> str:
    """Why a complete trial is not within the budget."""
    if not is_number(ratio(record)):
        return "no latency was measured"
    text = f"{ratio(record):.3g}x is over the budget of {budget_ratio:.3g}x"
    if record.feasible:
        return f"within the budget during the search, but timed again at the end {text}"
    return text if record.fine_tuned else f"{text}, so it was not fine-tuned"
