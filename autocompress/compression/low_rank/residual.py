"""Factors and a residual that make up a weight together: the residual sparse, or rounded to few bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from autocompress.compression.low_rank.algebra import conditioned, output_energy
from autocompress.compression.low_rank.decomposition import DECOMPOSITIONS, Factors, compose
from autocompress.compression.quantize.placement import rounded
from autocompress.space.candidate import Precision
from autocompress.space.rank_choice import Residual

_N_ROUNDS = 4


def factors_and_residual(
    weight: Tensor, second: Tensor | None, scheme: str, ranks: Sequence[int], residual: Residual
) -> tuple[Factors, Tensor]:
    """Factors L and residual S with W ≈ L + S; the pair of four rounds that has the least output error.

    In turn L is the best low-rank part of W - S, and S what the sparse or rounded form keeps of W - L (as in GoDec,
    Zhou & Tao 2011, and LoftQ, Li et al. 2023, arXiv:2310.08659). So the low-rank part keeps what the bits lose.

    Args:
        weight: (groups, out, in, *kernel).
        second: of the inputs, see `collect_moments`; None fits the weight itself.
        scheme: of the factors.
        ranks: per group.
        residual: its form.
    """
    weight = weight.double()
    form = _form(residual, second)
    kept = torch.zeros_like(weight)
    best: tuple[Factors, Tensor] | None = None
    least = float("inf")
    for _ in range(_N_ROUNDS):
        kept = form(weight - compose(DECOMPOSITIONS[scheme](weight - kept, second).factors(ranks)))
        factors = DECOMPOSITIONS[scheme](weight - kept, second).factors(ranks)
        error = output_energy((weight - kept - compose(factors)).flatten(2), conditioned(second))
        if error < least:
            best, least = (factors, kept), error
    assert best is not None
    return best


def _form(residual: Residual, second: Tensor | None) -> Callable[[Tensor], Tensor]:
    if residual.share is not None:
        share = residual.share
        return lambda weight: _largest_entries(weight, second, share)
    precision = stored_precision(residual)
    return lambda weight: rounded(weight.flatten(0, 1).float(), precision).to(weight).reshape(weight.shape)


def stored_precision(residual: Residual) -> Precision:
    """How a residual of few bits is stored: weights alone, at 4 and 8 bits in the forms that kernels read."""
    assert residual.bits is not None
    return f"{residual.bits}w" if residual.bits in (4, 8) else residual.bits


def _largest_entries(weight: Tensor, second: Tensor | None, share: float) -> Tensor:
    """The entries that change the output most, by magnitude × root mean square of their input; others are zero."""
    score = weight.flatten(2).abs()
    if second is not None:
        power = conditioned(second)
        assert power is not None
        score = score * power.diagonal(dim1=1, dim2=2).sqrt()[:, None]
    n_kept = max(1, round(share * weight.numel()))
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[score.flatten().argsort(descending=True, stable=True)[:n_kept]] = True
    return weight * mask.reshape(weight.shape)
