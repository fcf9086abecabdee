"""Writes a trained student's tensors back into the uncompressed model, so that other candidates start from them.

Which entry comes from where is read from a copy of the model whose tensors hold their own flat indices: dropping and
pruning it leaves, in place of each entry of the student, the index of that entry in the uncompressed model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from autocompress.compression.low_rank.merge import merge, merge_hidden
from autocompress.compression.low_rank.recurrent import StackedRecurrent
from autocompress.compression.prune import drop_branches_, remove_channels_
from autocompress.compression.quantize import without_rounding_
from autocompress.compression.recipe import Recipe
from autocompress.errors import CompressionError
from autocompress.graph import ModelGraph
from autocompress.graph.groups import owner
from autocompress.graph.shrink import group_slots, module_at, tensor_at

Indices = Mapping[str, Tensor]
"""Path of a parameter or buffer -> for each of its entries the flat index in the uncompressed model's, int64."""

_SHRINK = 0.5


def scatter_back(student: nn.Module, model: nn.Module, graph: ModelGraph, recipe: Recipe) -> nn.Module:
    """A copy of the uncompressed model that holds the student's tensors.

    Kept channels go to their places, factors are multiplied out, 8-bit layers give the float weights that training
    moves. Entries that the student lacks are set so that the copy computes the student's function, as far as the layers
    allow, and another candidate can train it:

    - Weights that read a removed channel into a kept one are zero; the removed channel's own weights are the model's.
    - Dropped branches are the model's.
    - Entries that sparsity set to zero have the model's sign and less than half of the layer's smallest other
      magnitude, so that the same sparsity takes them away again.

    The same recipe without reconstruction then gives the student's weights again. Two things are only near: an LSTM
    with split hidden weights gives a projected state, which no plain LSTM gives, so that the projection of its output
    is lost; and layers whose factors are sparse, or have a residual, are decomposed anew.

    Args:
        student: from `rebuild` with this recipe, trained or not; not touched.
        model: the uncompressed model; not touched.
        graph: of the model.
        recipe: of the student.

    Raises:
        CompressionError: the student is not of this model and recipe.
    """
    filled = copy.deepcopy(model)
    indices = source_indices(model, graph, recipe)
    dense = dict(_tensors(_dense(student, recipe)))
    with torch.no_grad():
        _silence_removed_(filled, graph, recipe, indices)
        for path, index in indices.items():
            values = dense.get(path)
            if values is None or values.shape != index.shape:
                found = "no such tensor" if values is None else f"shape {tuple(values.shape)}"
                raise CompressionError(
                    f"{path!r} of the student must have shape {tuple(index.shape)}, but there is {found}; "
                    "pass the recipe by which this student was made"
                )
            target = tensor_at(filled, path)
            assert target is not None
            flat, places = target.flatten(), index.flatten().to(target.device)
            values = values.detach().to(target).flatten()
            if path.removesuffix(".weight") in recipe.sparsity and path.removesuffix(".weight") not in recipe.ranks:
                values = _unzeroed(values, flat[places])
            flat[places] = values
            target.copy_(flat.reshape(target.shape))
    return filled


def source_indices(model: nn.Module, graph: ModelGraph, recipe: Recipe) -> Indices:
    """Where each entry of the dropped and pruned model, before any other step, stands in the uncompressed one."""
    carrier = copy.deepcopy(model)
    replaced: dict[int, Tensor] = {}  # tied tensors stay tied
    for module in carrier.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = replaced.setdefault(id(tensor), _indices_of(tensor))  # type: ignore[assignment]
    drop_branches_(carrier, graph, recipe.dropped)
    remove_channels_(carrier, graph, recipe.removed)
    return {path: tensor.detach().long() for path, tensor in _tensors(carrier)}


def _indices_of(tensor: Tensor) -> Tensor:
    """Flat indices in float64, which is exact up to 2^53 and may be a parameter."""
    index = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
    return nn.Parameter(index, requires_grad=False) if isinstance(tensor, nn.Parameter) else index


def _dense(student: nn.Module, recipe: Recipe) -> nn.Module:
    """A copy of the student in which every split layer is one layer again, unrounded where it was split."""
    dense = copy.deepcopy(student)
    for path in recipe.ranks:
        split = dense.get_submodule(path)
        without_rounding_(split)
        hidden = isinstance(split, StackedRecurrent) and any(isinstance(layer, nn.Linear) for layer in split.outputs)
        holder, _, name = path.rpartition(".")
        setattr(dense.get_submodule(holder), name, merge_hidden(split) if hidden else merge(split))  # type: ignore[arg-type]
    return dense


def _silence_removed_(filled: nn.Module, graph: ModelGraph, recipe: Recipe, indices: Indices) -> None:
    """Zeroes the weights by which kept outputs read removed channels, in place."""
    removed = [(graph.group(name), channels) for name, channels in recipe.removed.items()]
    gone = group_slots(removed)
    for group, channels in removed:
        for coupling in group.couplings:
            tensor, module = tensor_at(filled, coupling.tensor), module_at(filled, owner(coupling.tensor))
            if coupling.tensor not in indices or tensor is None or tensor.ndim < 2:
                continue
            transposed = bool(getattr(module, "transposed", False))
            reads = owner(coupling.tensor) in group.consumers and not isinstance(module, nn.Embedding)
            if not reads or coupling.dim != (0 if transposed else 1):
                continue
            mask = torch.ones(1, dtype=torch.bool, device=tensor.device)
            for dim, size in enumerate(tensor.shape):
                here = dim == coupling.dim
                slots = group.gone(coupling, channels) if here else gone.get((coupling.tensor, dim), ())
                chosen = torch.full((size,), not here)
                chosen[list(slots)] = here
                mask = mask & chosen.to(tensor.device).reshape(-1, *[1] * (tensor.ndim - 1 - dim))
            tensor.masked_fill_(mask, 0.0)


def _unzeroed(values: Tensor, before: Tensor) -> Tensor:
    """Zeros among `values` become the entries of `before`, made smaller than all others."""
    others = values[values != 0].abs()
    if not len(others):
        return before
    small = before.sign() * before.abs().clamp(max=float(others.min()) * _SHRINK)
    return torch.where(values == 0, small, values)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
