"""Removes channels and whole residual branches from a model in place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from autocompress.errors import CompressionError
from autocompress.graph.cut import cut_branches_
from autocompress.graph.model_graph import ChannelGroup, ModelGraph
from autocompress.graph.shrink import remove_, tensor_at


def remove_channels_(model: nn.Module, graph: ModelGraph, removed: Mapping[str, Sequence[int]]) -> None:
    """Removes channels from every coupled parameter and buffer, on a model that still has its original shapes.

    Residual branches may have been dropped before: what went with them is passed over.

    Args:
        model: changed in place; parameters stay `nn.Parameter` with their dtype, device and `requires_grad`.
        graph: of this model, from `inspect_model`.
        removed: channel group name -> indices of the channels that go, in [0, n_channels).

    Raises:
        CompressionError: an unknown group, an index out of range, all channels of a group, or a model whose tensors
            are not those of the graph; the model is left as it was.
    """
    groups = [_group(graph, name) for name in removed]
    chosen = [(group, _checked(group, removed[group.name])) for group in groups]
    _check_sizes(model, graph, groups)
    remove_(model, chosen)


def _group(graph: ModelGraph, name: str) -> ChannelGroup:
    try:
        return graph.group(name)
    except KeyError:
        known = [group.name for group in graph.groups]
        raise CompressionError(f"no channel group is named {name!r}; the groups are {known}") from None


def _checked(group: ChannelGroup, indices: Sequence[int]) -> list[int]:
    chosen = sorted({int(index) for index in indices})
    wrong = [index for index in chosen if not 0 <= index < group.n_channels]
    if wrong:
        raise CompressionError(f"channels of {group.name!r} are 0 to {group.n_channels - 1}, but got {wrong}")
    if len(chosen) == group.n_channels:
        raise CompressionError(f"all {group.n_channels} channels of {group.name!r} would be removed; keep at least one")
    if group.sizes and chosen != list(range(group.nearest(len(chosen)))):
        raise CompressionError(
            f"{group.name!r} goes by number: it can be cut to {list(group.sizes)} of its {group.n_channels} channels, "
            f"by naming the first ones as removed, but got {chosen}"
        )
    return chosen


def _check_sizes(model: nn.Module, graph: ModelGraph, groups: list[ChannelGroup]) -> None:
    sizes: dict[tuple[str, int], int] = defaultdict(int)
    for group in groups:
        for coupling in group.couplings:
            highest = max(max(slots, default=-1) for slots in coupling.slots)
            sizes[coupling.tensor, coupling.dim] = max(sizes[coupling.tensor, coupling.dim], highest + 1)
    for (path, dim), size in sizes.items():
        tensor = tensor_at(model, path)
        if tensor is None and any(path.startswith(f"{place}.") for branch in graph.branches for place in branch.gone):
            continue
        if tensor is None:
            raise CompressionError(f"the model has no parameter or buffer {path!r}; the graph must be of this model")
        if tensor.dim() <= dim or tensor.shape[dim] < size:
            raise CompressionError(
                f"dimension {dim} of {path!r} must have its original {size} or more slots, but its shape is "
                f"{tuple(tensor.shape)}; remove channels once, from a model of the original shapes"
            )


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
