"""An independent reference for pruned models: the original with zeros wherever a removed channel has a slot."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autocompress.graph import ModelGraph


class MaskedNorm(nn.Module):
    """A layer norm or RMS norm over the channels that are left; the others come out as zeros."""

    def __init__(self, norm: nn.LayerNorm | nn.RMSNorm, removed: set[int]) -> None:
        super().__init__()
        self.norm = norm
        self.eps, self.weight, self.bias = norm.eps, norm.weight, getattr(norm, "bias", None)  # others look at them
        mask = torch.ones(norm.normalized_shape[-1])
        mask[sorted(removed)] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        mask, count = self.mask, self.mask.sum()
        centred = isinstance(self.norm, nn.LayerNorm)
        mean = (x * mask).sum(-1, keepdim=True) / count if centred else torch.zeros(())
        square = ((x - mean).square() * mask).sum(-1, keepdim=True) / count
        eps = self.norm.eps if self.norm.eps is not None else torch.finfo(x.dtype).eps
        bias = self.norm.bias if centred else 0.0
        return ((x - mean) * torch.rsqrt(square + eps) * self.norm.weight + bias) * mask


def masked_copy(model: nn.Module, graph: ModelGraph, removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """Right for models that do not average over channels but in norms: a zero passes through all else."""
    masked = copy.deepcopy(model)
    state = masked.state_dict()
    norms: dict[str, set[int]] = defaultdict(set)
    with torch.no_grad():
        for name, channels in removed.items():
            for coupling in graph.group(name).couplings:
                slots = sorted(graph.group(name).gone(coupling, channels))
                holder = coupling.tensor.rpartition(".")[0]
                if isinstance(masked.get_submodule(holder), (nn.LayerNorm, nn.RMSNorm)):
                    norms[holder].update(slots)
                elif not coupling.tensor.endswith("running_var"):
                    # a weight norm divides by the length of a row, which must not be 0: its factor, also coupled, is
                    value = 1e-20 if coupling.tensor.endswith("original1") else 0.0
                    state[coupling.tensor].index_fill_(coupling.dim, torch.tensor(slots, dtype=torch.int64), value)
    for path, gone in norms.items():
        holder, _, name = path.rpartition(".")
        norm = masked.get_submodule(path)
        assert isinstance(norm, (nn.LayerNorm, nn.RMSNorm))
        setattr(masked.get_submodule(holder), name, MaskedNorm(norm, gone))
    return masked


def some_channels(graph: ModelGraph, share: float, seed: int = 0) -> dict[str, list[int]]:
    """A share of every group's channels, at random, never all."""
    source = torch.Generator().manual_seed(seed)
    removed = {}
    for group in graph.groups:
        order = torch.randperm(group.n_channels, generator=source).tolist()
        removed[group.name] = sorted(order[: min(group.n_channels - 1, round(share * group.n_channels))])
    return removed
