"""How much each channel of a group matters: one figure per channel, larger matters more."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.graph import ChannelGroup

Criterion: TypeAlias = Callable[[nn.Module, ChannelGroup], Tensor]
"""Model and group -> importance, shape (n_channels,)."""


def l2_magnitude(model: nn.Module, group: ChannelGroup) -> Tensor:
    """Root mean square over the group's weights (Li et al. 2017, arXiv:1608.08710, over all coupled layers)."""
    return _magnitude(model, group, power=2).sqrt()


def l1_magnitude(model: nn.Module, group: ChannelGroup) -> Tensor:
    """Mean absolute value over the group's weights."""
    return _magnitude(model, group, power=1)


CRITERIA: dict[str, Criterion] = {"l2": l2_magnitude, "l1": l1_magnitude}


def _magnitude(model: nn.Module, group: ChannelGroup, power: int) -> Tensor:
    """Sum over coupled weights of the channel's share in that weight, so that every layer has an equal say."""
    tensors = dict(model.named_parameters())
    total = torch.zeros(group.n_channels, dtype=torch.float64)
    for coupling in group.couplings:
        weight = tensors.get(coupling.tensor)
        if weight is None or weight.ndim < 2:
            continue
        other_dims = [dim for dim in range(weight.ndim) if dim != coupling.dim]
        by_index = weight.detach().double().abs().pow(power).sum(other_dims).cpu()
        by_channel = torch.stack([by_index[list(slots)].sum() for slots in coupling.slots])
        total += by_channel / by_channel.sum().clamp(min=1e-30)
    return total


def least_important(model: nn.Module, group: ChannelGroup, n_removed: int, criterion: str = "l2") -> tuple[int, ...]:
    """Indices of the channels to remove, ascending; of equals the later ones.

    Raises:
        InputError: no such criterion.
    """
    if criterion not in CRITERIA:
        raise InputError(f"importance must be one of {sorted(CRITERIA)}, but got {criterion!r}")
    order = torch.argsort(-CRITERIA[criterion](model, group), stable=True)
    return tuple(sorted(order[group.n_channels - n_removed :].tolist()))
