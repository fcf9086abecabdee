"""A choice of a layer's rank: the scheme, how much is kept, and the residual that is added to the factors."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from autocompress.errors import InputError

SCHEMES = ("channel", "spatial", "tucker", "recurrent")
"""Ways to split a layer; the first one exists for every kind of layer."""

RANK_GRID = 8
"""Ranks are multiples of this unless a search space says otherwise: odd counts run slower on most kernels."""

RANK_RULE = (
    '`0 < rank_ratio <= 1`, null, or "[spatial:|tucker:|recurrent:](ratio|energy:share)[+sparse:share|+bits:n]" '
    'as "spatial:0.5", "energy:0.95" or "0.25+sparse:0.05"'
)
_FORM = re.compile(
    rf"(?:(?P<scheme>{'|'.join(SCHEMES)}):)?(?P<energy>energy:)?(?P<kept>[0-9.e-]+)"
    r"(?:\+(?:sparse:(?P<sparse>[0-9.e-]+)|bits:(?P<bits>[2-8])))?"
)


@dataclass(frozen=True)
class Residual:
    """What is added to the low-rank part, a weight of the layer's own shape; exactly one of the two.

    Attributes:
        share: of its entries that are not zero, in (0, 1).
        bits: to which every entry is rounded, 2 to 8.
    """

    share: float | None = None
    bits: int | None = None

    def __str__(self) -> str:
        return f"bits:{self.bits}" if self.bits is not None else f"sparse:{self.share!r}"


@dataclass(frozen=True)
class RankChoice:
    """One choice of a layer's rank; exactly one of ratio and energy.

    Attributes:
        scheme: one of `SCHEMES`.
        ratio: rank as a share of the (pruned) layer's largest rank, in (0, 1].
        energy: share of the output's energy on the calibration data that the smallest sufficient rank keeps, (0, 1].
        residual: added to the factors, or None.
    """

    scheme: str = SCHEMES[0]
    ratio: float | None = None
    energy: float | None = None
    residual: Residual | None = None

    @property
    def share(self) -> float:
        """The ratio or the energy."""
        return float(self.ratio if self.ratio is not None else self.energy or 0.0)

    @property
    def value(self) -> float | str:
        """The canonical form: a plain ratio is a number, everything else text."""
        if self.ratio is not None and self.scheme == SCHEMES[0] and self.residual is None:
            return self.ratio
        scheme = "" if self.scheme == SCHEMES[0] else f"{self.scheme}:"
        kept = f"energy:{self.energy!r}" if self.energy is not None else repr(self.ratio)
        return f"{scheme}{kept}" + (f"+{self.residual}" if self.residual is not None else "")


def parse_rank(value: object) -> RankChoice:
    """The choice that a number or a text means.

    Raises:
        InputError: another form, or a share outside its range.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0.0 < value <= 1.0:
        return RankChoice(ratio=float(value))
    match = _FORM.fullmatch(value) if isinstance(value, str) else None
    kept = _share(match["kept"]) if match is not None else None
    if match is None or kept is None:
        raise InputError(f"{RANK_RULE} must hold, but got {value!r}")
    residual = None
    if match["bits"] is not None:
        residual = Residual(bits=int(match["bits"]))
    elif match["sparse"] is not None:
        share = _share(match["sparse"])
        if share is None or share == 1.0:
            raise InputError(f"{RANK_RULE} must hold, with a share below 1 for `sparse`, but got {value!r}")
        residual = Residual(share=share)
    ratio, energy = (None, kept) if match["energy"] else (kept, None)
    return RankChoice(match["scheme"] or SCHEMES[0], ratio, energy, residual)


def is_rank(value: object) -> bool:
    """Whether `parse_rank` takes this."""
    try:
        parse_rank(value)
    except InputError:
        return False
    return True


def _share(text: str) -> float | None:
    """The number in (0, 1] that a text says."""
    try:
        share = float(text)
    except ValueError:
        return None
    return share if math.isfinite(share) and 0.0 < share <= 1.0 else None


def rank_distance(choice: object, wanted: object) -> float:
    """How far two choices are apart: 0 for equal ones, at least 1 for those of another scheme or residual.

    No factorization counts as a rank ratio of 1.
    """
    one, other = (parse_rank(1.0 if value is None else value) for value in (choice, wanted))
    differences = [
        one.scheme != other.scheme and None not in (choice, wanted),
        (one.energy is None) != (other.energy is None) and None not in (choice, wanted),
        one.residual != other.residual,
    ]
    return sum(differences) + abs(one.share - other.share)
