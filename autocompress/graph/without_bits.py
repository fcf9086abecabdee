"""Says how many of a model's weight layers cannot get bits or ranks, and why: the first thing to know about a model."""

from __future__ import annotations

from collections import Counter

from autocompress.graph.model_graph import ModelGraph

_MOST_REASONS = 3


def without_bits(graph: ModelGraph) -> str | None:
    """One sentence, the commonest reasons first; None where every layer can get bits."""
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for item in graph.frozen:
        if item.what == "layer":
            reasons[item.reason] += item.n_places
            examples.setdefault(item.reason, item.name)
    n_frozen = reasons.total()
    if not n_frozen:
        return None
    shown = [f"{n} as {examples[reason]}: {reason}" for reason, n in reasons.most_common(_MOST_REASONS)]
    more = n_frozen - sum(n for _, n in reasons.most_common(_MOST_REASONS))
    rest = [f"{more} for other reasons"] if more else []
    return f"{n_frozen} of {n_frozen + len(graph.layers)} layers cannot get 8 bits ({'; '.join([*shown, *rest])})"
