"""Removes whole residual branches from a model in place, by name."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from autocompress.errors import CompressionError
from autocompress.graph.cut import cut_branches_
from autocompress.graph.model_graph import ModelGraph


def drop_branches_(model: nn.Module, graph: ModelGraph, names: Collection[str]) -> None:
    """Replaces each named block by its shortcut: the branch's weights and ops are gone.

    Args:
        model: changed in place; the blocks become their shortcut modules or torch.nn modules.
        graph: of this model, from `inspect_model`.
        names: of residual branches.

    Raises:
        CompressionError: a name that is no residual branch of the graph; the model is left as it was.
    """
    known = {branch.name: branch for branch in graph.branches}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise CompressionError(f"no residual branch is named {unknown}; the branches are {list(known)}")
    cut_branches_(model, [branch for name, branch in known.items() if name in names])
