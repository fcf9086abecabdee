"""An independent reference for pruned models: the original with zeros wherever a removed channel has a slot."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from autocompress.graph import ModelGraph


def masked_copy(model: nn.Module, graph: ModelGraph, removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """Right for models that neither normalise over channels nor average them: a zero passes through all else."""
    masked = copy.deepcopy(model)
    state = masked.state_dict()
    with torch.no_grad():
        for name, channels in removed.items():
            for coupling in graph.group(name).couplings:
                slots = [slot for channel in channels for slot in coupling.slots[channel]]
                if not coupling.tensor.endswith("running_var"):
                    state[coupling.tensor].index_fill_(coupling.dim, torch.tensor(slots, dtype=torch.int64), 0)
    return masked


def some_channels(graph: ModelGraph, share: float, seed: int = 0) -> dict[str, list[int]]:
    """A share of every group's channels, at random, never all."""
    source = torch.Generator().manual_seed(seed)
    removed = {}
    for group in graph.groups:
        order = torch.randperm(group.n_channels, generator=source).tolist()
        removed[group.name] = sorted(order[: min(group.n_channels - 1, round(share * group.n_channels))])
    return removed
