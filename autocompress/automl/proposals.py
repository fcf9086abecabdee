"""Candidates that are proposed before any sampler: uniform ones, and the strongest of a space."""

from __future__ import annotations

from typing import Any

from autocompress.candidate import Candidate
from autocompress.space import SearchSpace

_UNIFORM_SHARE = 3  # at most one trial in three is a uniform candidate


def strongest_candidates(space: SearchSpace) -> list[Candidate]:
    """The extremes: every knob at its last resort, with and without 8 bits and low rank."""
    extreme = {knob.name: max(knob.choices, key=_strength) for knob in space.knobs}
    kinds = (
        {"prune_ratio", "drop", "weight_bits"},
        {"prune_ratio", "drop"},
        {"prune_ratio", "drop", "weight_bits", "rank_ratio"},
    )
    chosen = [
        space.candidate({knob.name: extreme[knob.name] for knob in space.knobs if knob.kind in kind}) for kind in kinds
    ]
    return list({candidate.digest: candidate for candidate in chosen}.values())


def _strength(choice: Any) -> float:
    """Larger is stronger: high prune ratios and drops, low ranks and bits."""
    if choice is None:
        return -1e9
    return float(choice) if isinstance(choice, bool) or choice == 0 or choice < 1 else -float(choice)


def uniform_candidates(space: SearchSpace, n_trials: int) -> list[Candidate]:
    """Uniform candidates from mild to strong, 8 bits first; at most a third of the trials."""
    grid = [(prune, rank, bits) for bits in (8, 32) for rank in (None, 0.5) for prune in (0.0, 0.25, 0.5)]
    chosen = [space.uniform(prune_ratio=prune, rank_ratio=rank, weight_bits=bits) for prune, rank, bits in grid]
    unique = {candidate.digest: candidate for candidate in chosen if not candidate.is_baseline}
    return list(unique.values())[: max(1, n_trials // _UNIFORM_SHARE)]
