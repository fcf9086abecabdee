"""One point of a search space: prune ratios by channel group, drops by residual branch, ranks and bits by layer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autocompress.errors import InputError
from autocompress.settings_schema import require_kind, shown
from autocompress.space.rank_choice import RANK_GRID, RANK_RULE, is_rank, parse_rank

FULL_BITS, HALF_BITS, INT8_BITS = 32, 16, 8

Precision = int | str
"""Bits of weights and activations, or "8w" and "4w": bits of the weights alone."""

PRECISIONS: tuple[Precision, ...] = (32, 16, 8, "8w", 7, 6, 5, 4, "4w", 3, 2)
"""Every precision of a layer there is; a runtime has kernels for some, the others save size only."""

SPARSITY_RULE = '`0 <= sparsity < 1`, or "n:m" with `1 <= n < m` as "2:4",'


def bits_number(precision: Precision) -> float:
    """A precision as a number that orders it: of the same bits, weights alone count half a bit more."""
    return int(precision.removesuffix("w")) + 0.5 if isinstance(precision, str) else float(precision)


def kept_of_block(sparsity: float | str) -> tuple[int, int] | None:
    """(n, m) of "n:m": n of every m entries stay; None for a share.

    Raises:
        InputError: text of another form.
    """
    if not isinstance(sparsity, str):
        return None
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", sparsity)
    if match is None or not int(match[1]) < int(match[2]):
        raise InputError(f"{SPARSITY_RULE} must hold, but got {sparsity!r}")
    return int(match[1]), int(match[2])


def sparsity_share(sparsity: float | str) -> float:
    """Share of the entries that become zero: of "2:4" 0.5."""
    block = kept_of_block(sparsity)
    return float(sparsity) if block is None else 1 - block[0] / block[1]


def is_sparsity(value: object) -> bool:
    """Whether this is a share in [0, 1) or "n:m"."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        return 0.0 <= sparsity_share(value) < 1.0
    except InputError:
        return False


def _plain(sparsity: float | str) -> float | str:
    return sparsity if isinstance(sparsity, str) else float(sparsity)


FINE_TUNE_RULES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "learning_rate": ("`learning_rate > 0`", lambda value: value > 0),
    "weight_decay": ("`weight_decay >= 0`", lambda value: value >= 0),
    "temperature": ("`temperature >= 1`", lambda value: value >= 1),
    "alpha": ("`0 <= alpha <= 1`", lambda value: 0 <= value <= 1),
    "feature_weight": ("`feature_weight >= 0`", lambda value: value >= 0),
    "l1_weight": ("`l1_weight >= 0`", lambda value: value >= 0),
    "group_lasso_weight": ("`group_lasso_weight >= 0`", lambda value: value >= 0),
    "steps": ("`steps >= 1` and whole", lambda value: value >= 1 and value == int(value)),
}
"""What a candidate may ask of its own fine-tune: the rule of each, as text and as a check."""


def check_fine_tune(name: str, value: object) -> None:
    """Refuses what is no setting of the fine-tune, or outside its range; None stands for the search's own.

    Raises:
        InputError: says the rule.
    """
    if name not in FINE_TUNE_RULES:
        raise InputError(f"fine_tune has the settings {', '.join(FINE_TUNE_RULES)}, but got {name!r}")
    rule, holds = FINE_TUNE_RULES[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and holds(float(value))):  # type: ignore[arg-type]
        raise InputError(f"{rule} must hold, but fine_tune has {value!r}")


def check_rank_grid(grid: object, owner: str) -> None:
    """Refuses a grid of ranks that is no whole number of at least 1; `owner` is named in the message.

    Raises:
        InputError: says the rule.
    """
    if isinstance(grid, bool) or not isinstance(grid, int) or grid < 1:
        raise InputError(f"`rank_grid >= 1` must hold and be whole, but {owner} has {grid!r}")


@dataclass(frozen=True)
class Candidate:
    """What is asked of each part of a model; a name that is absent is left as it is.

    Attributes:
        prune_ratio: channel group name -> share of its channels removed, in [0, 1).
        drop: names of the residual branches that are removed whole.
        rank_ratio: layer path -> rank as a share of the (pruned) layer's largest rank, in (0, 1], or text with a
            scheme, an energy or a residual, as "spatial:0.5", "energy:0.95"; see `rank_choice`.
        weight_bits: layer path -> one of `PRECISIONS`: 16 (bfloat16), 8 (weights and activations), "8w" and "4w"
            (weights alone: int8 by channel, int4 by group), 2 to 7 (weights alone, a code table), or 32: as it is.
        sparsity: layer path -> share of the weight's entries that become zero, in [0, 1), or "n:m": of every m
            neighbours along the input dimension n stay, as "2:4".
        fine_tune: a name in `FINE_TUNE_RULES` -> its value for this candidate, in place of the search's.
        rank_grid: the ranks that come of `rank_ratio` are multiples of it.

    Choices that change nothing (ratio 0, 32 bits, a grid without ranks) are left out, so that equal models have
    equal digests.

    Raises:
        InputError: a ratio, a bit width, a sparsity, a grid or a setting of the fine-tune is outside its range.
    """

    prune_ratio: Mapping[str, float] = field(default_factory=dict)
    drop: frozenset[str] = frozenset()
    rank_ratio: Mapping[str, float | str] = field(default_factory=dict)
    weight_bits: Mapping[str, Precision] = field(default_factory=dict)
    sparsity: Mapping[str, float | str] = field(default_factory=dict)
    fine_tune: Mapping[str, float] = field(default_factory=dict)
    rank_grid: int = RANK_GRID

    def __post_init__(self) -> None:
        for kind in ("prune_ratio", "rank_ratio", "weight_bits", "sparsity", "fine_tune"):
            require_kind(kind, getattr(self, kind), "a mapping of names", Mapping)
        for name, ratio in self.prune_ratio.items():
            if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0.0 <= ratio < 1.0:
                raise InputError(f"`0 <= prune_ratio < 1` must hold, but {name!r} has {shown(ratio)}")
        for name, share in self.rank_ratio.items():
            if share is not None and not is_rank(share):
                raise InputError(f"{RANK_RULE} must hold, but {name!r} has {share!r}")
        for name, bits in self.weight_bits.items():
            if isinstance(bits, bool) or not isinstance(bits, int | str) or bits not in PRECISIONS:
                raise InputError(f"`weight_bits` in {list(PRECISIONS)} must hold, but {name!r} has {bits!r}")
        for name, level in self.sparsity.items():
            if not is_sparsity(level):
                raise InputError(f"{SPARSITY_RULE} must hold, but {name!r} has {level!r}")
        for name, value in self.fine_tune.items():
            check_fine_tune(name, value)
        check_rank_grid(self.rank_grid, "the candidate")
        freeze = object.__setattr__
        freeze(self, "prune_ratio", {k: float(v) for k, v in sorted(self.prune_ratio.items()) if v > 0})
        freeze(self, "drop", frozenset(self.drop))
        ranks = {k: parse_rank(v).value for k, v in sorted(self.rank_ratio.items()) if v is not None}
        freeze(self, "rank_ratio", ranks)
        freeze(self, "rank_grid", self.rank_grid if ranks else RANK_GRID)
        freeze(self, "weight_bits", {k: v for k, v in sorted(self.weight_bits.items()) if v != FULL_BITS})
        freeze(self, "sparsity", {k: _plain(v) for k, v in sorted(self.sparsity.items()) if sparsity_share(v) > 0})
        freeze(self, "fine_tune", {k: float(v) for k, v in sorted(self.fine_tune.items()) if v is not None})

    @property
    def is_baseline(self) -> bool:
        """True when nothing is asked of the model: the uncompressed one, which is not fine-tuned."""
        return not (self.prune_ratio or self.drop or self.rank_ratio or self.weight_bits or self.sparsity)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, names sorted; without `sparsity`, `fine_tune` and `rank_grid` where they are as usual."""
        values: dict[str, Any] = {
            "drop": sorted(self.drop),
            "prune_ratio": dict(self.prune_ratio),
            "rank_ratio": dict(self.rank_ratio),
            "weight_bits": dict(self.weight_bits),
        }
        seldom = {"sparsity": dict(self.sparsity), "fine_tune": dict(self.fine_tune)}
        grid = {"rank_grid": self.rank_grid} if self.rank_grid != RANK_GRID else {}
        return {**values, **{name: value for name, value in seldom.items() if value}, **grid}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Candidate:
        """The inverse of `to_dict`.

        Raises:
            InputError: an unknown key, a value of another type, or one outside its range.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"a candidate is a mapping, but got {shown(data)}")
        known = ("drop", "prune_ratio", "rank_ratio", "weight_bits", "sparsity", "fine_tune", "rank_grid")
        unknown = set(data) - set(known)
        if unknown:
            raise InputError(f"a candidate has the keys {', '.join(known)}, but got {shown(sorted(map(str, unknown)))}")
        for key in set(data) - {"drop", "rank_grid"}:
            if not isinstance(data[key], Mapping) or not all(isinstance(name, str) for name in data[key]):
                raise InputError(f"a candidate's {key} is a mapping of names, but got {shown(data[key])}")
        dropped = data.get("drop", ())
        if not isinstance(dropped, list | tuple) or not all(isinstance(name, str) for name in dropped):
            raise InputError(f"a candidate's drop is a list of names, but got {shown(dropped)}")
        return cls(
            prune_ratio=data.get("prune_ratio", {}),
            drop=frozenset(dropped),
            rank_ratio=data.get("rank_ratio", {}),
            weight_bits=data.get("weight_bits", {}),
            sparsity=data.get("sparsity", {}),
            fine_tune=data.get("fine_tune", {}),
            rank_grid=data.get("rank_grid", RANK_GRID),
        )

    def to_json(self) -> str:
        """Canonical JSON: equal candidates give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """12 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def __hash__(self) -> int:
        return hash(self.to_json())
