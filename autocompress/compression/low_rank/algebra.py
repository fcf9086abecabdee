"""Best low-rank bases under a second moment, and least squares under it; batched over groups, float64, no inverses.

A weight W (out, in) reads inputs x with second moment M = E[x x']. The output error of another weight V is
E|(W - V) x|^2 = tr((W - V) M (W - V)'). Its best rank-r value is reached by V = U U' W, where U holds the first r
eigenvectors of W M W'. That is the truncated SVD of the whitened weight (SVD-LLM, Wang et al. 2024, arXiv:2403.07378),
written without the inverse of the whitening, so a singular M needs no special case: directions that the data never
shows weigh `FLOOR` of the mean one, and among themselves are ranked as plain weight SVD ranks them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-10


@dataclass(frozen=True)
class Basis:
    """Directions of a layer's output, by falling energy.

    Attributes:
        vectors: orthonormal columns, shape (groups, out, k) with k = min(out, in).
        energy: of the output along each, shape (groups, k).
    """

    vectors: Tensor
    energy: Tensor


def conditioned(second: Tensor | None) -> Tensor | None:
    """The second moment with `FLOOR` × its mean diagonal added to the diagonal; None where it is zero altogether.

    Args:
        second: shape (groups, n, n), or (groups, n) for a diagonal one; None stands for the identity.
    """
    if second is None:
        return None
    diagonal = second if second.ndim == 2 else second.diagonal(dim1=1, dim2=2)
    floor = FLOOR * diagonal.mean(1, keepdim=True)
    if not bool((floor > 0).all()):
        floor = torch.where(floor > 0, floor, torch.ones_like(floor))  # a group without input: plain weight SVD
    return second + (floor if second.ndim == 2 else torch.diag_embed(floor.expand_as(diagonal)))


def times(weight: Tensor, second: Tensor | None) -> Tensor:
    """W M, shape (groups, out, in)."""
    if second is None:
        return weight
    return weight * second[:, None] if second.ndim == 2 else weight @ second


def output_basis(weight: Tensor, second: Tensor | None) -> Basis:
    """Eigenvectors of W M W'.

    Args:
        weight: float64, shape (groups, out, in).
        second: as `conditioned` gives it.
    """
    outer: Tensor | None = None
    if weight.shape[1] > weight.shape[2]:  # no more directions than inputs: work in the span of the weight
        outer, weight = torch.linalg.qr(weight)
    energy, vectors = torch.linalg.eigh(times(weight, second) @ weight.mT)
    energy, vectors = energy.flip(-1).clamp(min=0), vectors.flip(-1)
    return Basis(vectors if outer is None else outer @ vectors, energy)


def correction(gram: Tensor, missing: Tensor) -> Tensor:
    """The correction of a least-squares start: the smallest D with D G = B, each feature weighed by its power.

    Args:
        gram: G, second moment of the features, (groups, k, k).
        missing: B, what the start leaves, times the features, (groups, out, k).
    """
    diagonal = gram.diagonal(dim1=1, dim2=2)
    gram = gram + FLOOR * torch.diag_embed(diagonal.maximum(1e-6 * diagonal.mean(1, keepdim=True)))
    factor, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed.any()):  # features that are linear combinations of others
        change: Tensor = missing @ torch.linalg.pinv(gram, hermitian=True, rtol=FLOOR)
        return change
    return torch.cholesky_solve(missing.mT, factor).mT


def output_energy(weight: Tensor, second: Tensor | None) -> float:
    """tr(W M W'), summed over groups."""
    return float((times(weight, second) * weight).sum())
