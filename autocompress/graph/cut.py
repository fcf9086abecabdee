"""Replaces residual blocks by their shortcuts, in place."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from autocompress.graph.model_graph import ResidualBranch


def cut_branches_(model: nn.Module, branches: Sequence[ResidualBranch]) -> None:
    """Each block becomes its shortcut, followed by the activation that came after the sum, if there was one."""
    for branch in branches:
        block = model.get_submodule(branch.name)
        parts: list[nn.Module] = [block.get_submodule(branch.shortcut)] if branch.shortcut else []
        if branch.activation:
            parts.append(getattr(nn, branch.activation)())
        holder, _, name = branch.name.rpartition(".")
        new = parts[0] if len(parts) == 1 else nn.Sequential(*parts) if parts else nn.Identity()
        setattr(model.get_submodule(holder), name, new.train(block.training))
