"""Penalties that push weights, or whole channels, towards zero during a fine-tune, so that they can go later."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.devices import device_of
from autocompress.graph import ChannelGroup, ModelGraph


def l1_penalty(model: nn.Module) -> Tensor:
    """Mean magnitude of the entries of all weights (two or more dimensions), a scalar (Tibshirani 1996)."""
    weights = [weight for weight in model.parameters() if weight.ndim > 1 and weight.requires_grad]
    if not weights:
        return torch.zeros((), device=device_of(model))
    return torch.stack([weight.abs().sum() for weight in weights]).sum() / sum(weight.numel() for weight in weights)


class GroupLasso:
    """Sum over channels of sqrt(n) |w|, w all n entries that go with a channel, by entry (Wen et al. 2016).

    A channel counts over everything that its group couples, producers, norms and consumers, as in DepGraph (Fang et al.
    2023, arXiv:2301.12900): so it is driven to zero in all of them, or in none. For entries of equal magnitude the
    penalty is that magnitude. arXiv:1608.03665.

    Args:
        model: whose parameters are penalised.
        graph: of this model.
    """

    def __init__(self, model: nn.Module, graph: ModelGraph) -> None:
        parameters = dict(model.named_parameters())
        self._device = device_of(model)
        self._groups = [_Group.of(group, parameters) for group in graph.groups]

    def __call__(self) -> Tensor:
        """The penalty at the parameters' present values, a scalar."""
        total, n_entries = torch.zeros((), device=self._device), 0.0
        for group in self._groups:
            squares, sizes = group.measure()
            total = total + (sizes * (squares + torch.finfo(squares.dtype).tiny)).sqrt().sum()
            n_entries += float(sizes.sum())
        return total / max(n_entries, 1.0)


@dataclass(frozen=True)
class _Group:
    """One channel group.

    Attributes:
        n_channels: of the group.
        parts: parameter, dimension, slots along it, and the channel of each slot.
    """

    n_channels: int
    parts: tuple[tuple[nn.Parameter, int, Tensor, Tensor], ...]

    @classmethod
    def of(cls, group: ChannelGroup, parameters: dict[str, nn.Parameter]) -> _Group:
        parts = []
        for coupling in group.couplings:
            parameter = parameters.get(coupling.tensor)
            if parameter is not None and parameter.requires_grad:
                slots = torch.tensor(coupling.slots, device=parameter.device)
                channels = torch.arange(group.n_channels, device=parameter.device)[:, None].expand_as(slots)
                parts.append((parameter, coupling.dim, slots.flatten(), channels.flatten()))
        return cls(group.n_channels, tuple(parts))

    def measure(self) -> tuple[Tensor, Tensor]:
        """Sum of squares and number of entries of each channel, both shape (n_channels,)."""
        device = self.parts[0][0].device if self.parts else None
        squares, sizes = torch.zeros(self.n_channels, device=device), torch.zeros(self.n_channels, device=device)
        for parameter, dim, slots, channels in self.parts:
            by_slot = parameter.float().square().movedim(dim, 0).reshape(parameter.shape[dim], -1).sum(1)
            n_by_slot = torch.full_like(by_slot, parameter.numel() // parameter.shape[dim])
            squares = squares.index_add(0, channels, by_slot[slots])
            sizes = sizes.index_add(0, channels, n_by_slot[slots])
        return squares, sizes
