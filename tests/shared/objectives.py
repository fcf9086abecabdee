"""Objectives as most tests want them: accuracy, maximised."""

from __future__ import annotations

from typing import Any

from autocompress.results.objectives import Objectives


def of_accuracy(budget: float | None = None, reference_ms: float = 1.0, **more: Any) -> Objectives:
    """Accuracy up and latency down, within a ratio; `more` are further fields."""
    return Objectives(
        "accuracy", reference_ms=reference_ms, latency_budgets=() if budget is None else (budget,), **more
    )
