"""A layer's factors at every rank: the channel, spatial and Tucker-2 schemes, and factors with a residual."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from autocompress.compression.low_rank.algebra import (
    Basis,
    conditioned,
    correction,
    output_basis,
    output_energy,
    times,
)
from autocompress.compression.quantize.placement import rounded
from autocompress.space.candidate import Precision
from autocompress.space.rank_choice import Residual

Factors = tuple[Tensor, ...]
"""Weights of the layers in a row, first one first, float64, each (groups, out, in, *kernel)."""


class Decomposition(Protocol):
    """A scheme's decomposition of a weight (groups, out, in, *kernel) under its input's second moment.

    Ranks are per group. Every scheme gives the weight itself at the largest ranks, and an output error that does not
    rise with the ranks.
    """

    def factors(self, ranks: Sequence[int]) -> Factors:
        """At the ranks of the scheme."""

    def kept_energy(self, ranks: Sequence[int]) -> float:
        """Share of the output's energy that the factors keep, at most 1."""


class ChannelDecomposition:
    """A layer to `rank` channels with the whole kernel, then 1 x 1 (Zhang et al. 2015, arXiv:1505.06798); optimal.

    Singular values are split evenly between the factors. That is the split at which rounding the second factor and
    rounding what is between the factors cost the same, and both are smallest together.
    """

    def __init__(self, weight: Tensor, second: Tensor | None) -> None:
        self._kernel = weight.shape[3:]
        flat = weight.flatten(2).double()
        basis = output_basis(flat, conditioned(second))
        self._basis = basis
        self._inner = basis.vectors.mT @ flat

    def factors(self, ranks: Sequence[int]) -> Factors:
        """(in -> rank, rank -> out)."""
        (rank,) = ranks
        scale = _scale(self._basis, rank)
        first = self._inner[:, :rank] / scale[:, :, None]
        second = self._basis.vectors[:, :, :rank] * scale[:, None]
        return first.unflatten(2, (-1, *self._kernel)), second.reshape(*second.shape, *(1 for _ in self._kernel))

    def kept_energy(self, ranks: Sequence[int]) -> float:
        """From the eigenvalues."""
        (rank,) = ranks
        whole = float(self._basis.energy.sum())
        return float(self._basis.energy[:, :rank].sum()) / whole if whole > 0 else 1.0


class SpatialDecomposition:
    """k x 1 to `rank` channels, then 1 x k (Jaderberg et al. 2014, arXiv:1405.3866).

    The columns are chosen under the second moment of the k x 1 windows, the rows are then the least-squares fit under
    that of the whole windows.
    """

    def __init__(self, weight: Tensor, second: Tensor | None) -> None:
        self._weight, self._second = weight.double(), conditioned(second)
        n_groups, n_out, n_in, height, width = weight.shape
        by_column = self._weight.permute(0, 1, 4, 2, 3).reshape(n_groups, n_out * width, n_in * height)
        basis = output_basis(by_column, _of_columns(self._second, n_in, height, width))
        self._basis = basis
        self._columns = basis.vectors.mT @ by_column  # (groups, rank, in × height)

    def factors(self, ranks: Sequence[int]) -> Factors:
        """(k x 1, 1 x k)."""
        (rank,) = ranks
        n_groups, n_out, n_in, height, width = self._weight.shape
        scale = _scale(self._basis, rank)
        columns = self._columns[:, :rank] / scale[:, :, None]
        start = (self._basis.vectors[:, :, :rank] * scale[:, None]).reshape(n_groups, n_out, width, rank)
        by_row = self._weight.reshape(n_groups, n_out, n_in * height, width)
        rows, _ = _on_projected(by_row, columns, start, self._second)
        return (
            columns.reshape(n_groups, rank, n_in, height, 1),
            rows.reshape(n_groups, n_out, rank, 1, width),
        )

    def kept_energy(self, ranks: Sequence[int]) -> float:
        """Of the composed weight."""
        return _kept(self._weight, compose(self.factors(ranks)), self._second)


class TuckerDecomposition:
    """1 x 1 to `ranks[0]` channels, the kernel to `ranks[1]`, then 1 x 1 (Kim et al. 2016, arXiv:1511.06530).

    The input channels' subspace is chosen under their own second moment; given it, core and output factor are optimal
    (reduced-rank regression).
    """

    def __init__(self, weight: Tensor, second: Tensor | None) -> None:
        self._weight, self._second = weight.double(), conditioned(second)
        by_channel = self._weight.movedim(2, -1).flatten(1, -2)  # (groups, out × kernel, in)
        self._basis = output_basis(by_channel, _of_channels(self._second, weight.shape[2]))
        self._inputs = self._basis.vectors.mT @ by_channel

    def factors(self, ranks: Sequence[int]) -> Factors:
        """(in -> ranks[0], the core, ranks[1] -> out)."""
        n_inner, n_outer = ranks
        kernel = self._weight.shape[3:]
        ones = (1,) * len(kernel)
        scale = _scale(self._basis, n_inner)
        inputs = self._inputs[:, :n_inner] / scale[:, :, None]
        start = (self._basis.vectors[:, :, :n_inner] * scale[:, None]).reshape(*self._weight.shape[:2], -1, n_inner)
        core, moment = _on_projected(self._weight.flatten(3), inputs, start, self._second)
        basis = output_basis(core, moment)
        balance = _scale(basis, n_outer)
        outer = basis.vectors[:, :, :n_outer]
        inner = (outer.mT @ core) / balance[:, :, None]
        outer = outer * balance[:, None]
        return (
            inputs.reshape(*inputs.shape, *ones),
            inner.unflatten(2, (n_inner, *kernel)),
            outer.reshape(*outer.shape, *ones),
        )

    def kept_energy(self, ranks: Sequence[int]) -> float:
        """Of the composed weight."""
        return _kept(self._weight, compose(self.factors(ranks)), self._second)


DECOMPOSITIONS: dict[str, Callable[[Tensor, Tensor | None], Decomposition]] = {
    "channel": ChannelDecomposition,
    "recurrent": ChannelDecomposition,
    "spatial": SpatialDecomposition,
    "tucker": TuckerDecomposition,
}


def compose(factors: Factors) -> Tensor:
    """The weight that factors multiply out to, (groups, out, in, *kernel).

    Along each dimension of the kernel only one factor is longer than 1.
    """
    weight = factors[0]
    for factor in factors[1:]:
        weight = torch.einsum("gor...,gri...->goi...", factor, weight)
    return weight


def smallest_ranks(decomposition: Decomposition, energy: float, offered: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The first of the offered ranks, which rise, that keeps this share of the output's energy; else the last.

    Kept energy does not fall along them, so that it is found by bisection.
    """
    low, high = 0, len(offered) - 1
    while low < high:
        middle = (low + high) // 2
        if decomposition.kept_energy(offered[middle]) >= energy:
            high = middle
        else:
            low = middle + 1
    return offered[low]


def _on_projected(weight: Tensor, inputs: Tensor, start: Tensor, second: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The best weight (groups, out, rank × taps) on projected inputs, and the second moment of these.

    Every tap is projected alike: no matrix of rank × taps rows and in × taps columns is needed, which would be nearly
    all zeros.

    Args:
        weight: (groups, out, in, taps).
        inputs: the projection, (groups, rank, in).
        start: (groups, out, taps, rank); the answer where there is no second moment.
        second: of the inputs, (groups, in × taps, in × taps), as `conditioned` gives it.
    """
    flat = start.mT.flatten(2)
    if second is None:
        return flat, None
    n_groups, _, n_in, n_taps = weight.shape
    project = inputs[:, None]
    half = (inputs @ second.reshape(n_groups, n_in, -1)).reshape(n_groups, -1, n_in, n_taps)
    moment = (project @ half).flatten(2)
    left = (weight - (start @ project).mT).flatten(2)
    missing = (project @ times(left, second).reshape(weight.shape)).flatten(2)
    return flat + correction(moment, missing), moment


def _scale(basis: Basis, rank: int) -> Tensor:
    """The square root of each direction's singular value, (groups, rank); 1 where that is as good as zero."""
    root = basis.energy[:, :rank] ** 0.25
    return torch.where(root > 1e-6 * basis.energy[:, :1] ** 0.25, root, torch.ones_like(root))


def _of_columns(second: Tensor | None, n_in: int, height: int, width: int) -> Tensor | None:
    """Mean second moment of the k x 1 windows, (groups, in × height, in × height)."""
    if second is None:
        return None
    blocks = second.reshape(len(second), n_in * height, width, n_in * height, width)
    return blocks.diagonal(dim1=2, dim2=4).mean(-1)


def _of_channels(second: Tensor | None, n_in: int) -> Tensor | None:
    """Mean second moment of the channels at one tap, (groups, in, in)."""
    if second is None:
        return None
    return second.reshape(len(second), n_in, -1, n_in, second.shape[1] // n_in).diagonal(dim1=2, dim2=4).mean(-1)


def _kept(weight: Tensor, composed: Tensor, second: Tensor | None) -> float:
    whole = output_energy(weight.flatten(2), second)
    lost = output_energy((weight - composed).flatten(2), second)
    return 1.0 - lost / whole if whole > 0 else 1.0


_N_ROUNDS = 4


def factors_and_residual(
    weight: Tensor, second: Tensor | None, scheme: str, ranks: Sequence[int], residual: Residual
) -> tuple[Factors, Tensor]:
    """Factors L and residual S with W ≈ L + S; the pair of four rounds that has the least output error.

    L is the best low-rank part of W - S and S the sparse or rounded form of W - L, alternately (as in GoDec,
    Zhou & Tao 2011, and LoftQ, Li et al. 2023, arXiv:2310.08659). So the low-rank part makes up for the rounding error.

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
    """The precision in which a residual of few bits is stored: weight-only, at 4 and 8 bits as kernels read it."""
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
