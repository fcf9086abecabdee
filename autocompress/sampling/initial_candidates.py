"""Candidates that are proposed before any sampler: uniform ones, single drops, and the strongest of a space."""

from __future__ import annotations

import random
from collections import Counter

from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Choice, Knob, SearchSpace

_UNIFORM_SHARE = 3  # at most one trial in three is a uniform candidate
_DROP_SHARE = 4  # and at most one in four drops a single branch


def strongest_candidates(space: SearchSpace) -> list[Candidate]:
    """The extremes: every knob at its last resort, with and without 8 bits and low rank."""
    kinds = (
        {"prune_ratio", "drop", "weight_bits"},
        {"prune_ratio", "drop"},
        {"prune_ratio", "drop", "weight_bits", "rank_ratio"},
    )
    chosen = [
        space.candidate({knob.name: _strongest(knob) for knob in space.knobs if knob.kind in kind}) for kind in kinds
    ]
    return _distinct(chosen)


def strongest_text(space: SearchSpace) -> str:
    """The last resort of each kind of knob, as `drop True (9), weight_bits 8 (20)`: with how many knobs have it."""
    ends = Counter(f"{knob.kind} {_strongest(knob)}" for knob in space.knobs if knob.kind != "fine_tune")
    return ", ".join(f"{end} ({n})" for end, n in sorted(ends.items()))


def strong_candidate(space: SearchSpace, seed: int) -> Candidate:
    """A random candidate in which most knobs, how many is random too, are at their strongest."""
    rng = random.Random(seed)
    share = rng.uniform(0.5, 1.0)
    return space.candidate(
        {knob.name: _strongest(knob) if rng.random() < share else rng.choice(knob.choices) for knob in space.knobs}
    )


def uniform_candidates(space: SearchSpace, n_trials: int) -> list[Candidate]:
    """Uniform candidates from mild to strong, 8 bits first; at most a third of the trials."""
    grid = [(prune, rank, bits) for bits in (8, 32) for rank in (None, 0.5) for prune in (0.0, 0.25, 0.5, 0.75)]
    chosen = [space.uniform(prune_ratio=prune, rank_ratio=rank, weight_bits=bits) for prune, rank, bits in grid]
    return _distinct(chosen)[: max(1, n_trials // _UNIFORM_SHARE)]


def single_drop_candidates(space: SearchSpace, n_trials: int) -> list[Candidate]:
    """8 bits everywhere and one residual branch gone; at most a quarter of the trials, spread over the network."""
    bits = {knob.name: knob.nearest(8) for knob in space.knobs if knob.kind == "weight_bits"}
    drops = [knob.name for knob in space.knobs if knob.kind == "drop"]
    n_wanted = min(len(drops), n_trials // _DROP_SHARE)
    spread = [drops[i * len(drops) // n_wanted] for i in range(n_wanted)]
    return _distinct([space.candidate({**bits, name: True}) for name in spread])


def _strongest(knob: Knob) -> Choice:
    """The highest prune ratio or drop, the lowest rank (none is rank ratio 1) or bits; the search's own fine-tune."""
    if knob.kind == "fine_tune":
        return None
    pick = max if knob.kind in ("prune_ratio", "drop") else min
    return pick(knob.choices, key=knob.number)


def _distinct(candidates: list[Candidate]) -> list[Candidate]:
    return list({candidate.digest: candidate for candidate in candidates if not candidate.is_baseline}.values())
