"""Takes slots out of a model's parameters and buffers, and lets the attributes of its torch layers follow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.graph.model_graph import ChannelGroup, SizeAttribute

GoneSlots = dict[tuple[str, int], set[int]]
"""(tensor path, dimension) -> the indices that go."""


Orders = dict[tuple[str, int], tuple[int, ...]]
"""(tensor path, dimension) -> the indices that stay, in their new order."""

Removed = Sequence[tuple[ChannelGroup, Sequence[int]]]
"""Groups, each with the indices of its channels that go."""


def group_slots(removed: Removed) -> GoneSlots:
    """The indices that go with the given channels of each group, over all couplings."""
    slots: GoneSlots = defaultdict(set)
    for group, channels in removed:
        for coupling in group.couplings if channels else ():
            slots[coupling.tensor, coupling.dim].update(group.gone(coupling, channels))
    return slots


def new_orders(removed: Removed) -> Orders:
    """The dimensions whose indices do not stay in their order: those of groups that go by number."""
    found = [(item, group.order(item, channels)) for group, channels in removed for item in group.couplings]
    return {(item.tensor, item.dim): order for item, order in found if order is not None}


def remove_(model: nn.Module, removed: Removed) -> None:
    """Removes the given channels of each group from the model, in place."""
    shrink_(model, group_slots(removed), new_orders(removed))
    for group, channels in removed:
        for item in group.attributes:
            module = module_at(model, item.module)
            if module is None:  # it went with a dropped branch
                continue
            setattr(module, item.name, _smaller(getattr(module, item.name), item, item.step * len(set(channels))))


def _smaller(value: Any, item: SizeAttribute, difference: int) -> Any:
    if item.place is None:
        return value - difference
    return (*value[: item.place], value[item.place] - difference, *value[item.place + 1 :])


def shrink_(model: nn.Module, slots: GoneSlots, orders: Orders | None = None) -> None:
    """Takes the slots out of every tensor, in place; tied tensors stay tied."""
    orders = orders or {}
    by_tensor: dict[str, dict[int, set[int]]] = defaultdict(dict)
    for (path, dim), gone in slots.items():
        by_tensor[path][dim] = gone
    aliases = _aliases(model)
    touched: dict[str, nn.Module] = {}
    for path, dims in by_tensor.items():
        old = tensor_at(model, path)
        if old is None:  # it went with a dropped branch
            continue
        stay = {dim: [i for i in range(old.shape[dim]) if i not in gone] for dim, gone in dims.items()}
        new = _with_only(old, {dim: orders.get((path, dim), left) for dim, left in stay.items()})
        for holder, name in aliases[id(old)]:
            setattr(model.get_submodule(holder), name, new)
            layer = holder.split(".parametrizations.")[0]
            touched[layer] = model.get_submodule(layer)
    for module in touched.values():
        _fix_attributes_(module)


def tensor_at(model: nn.Module, path: str) -> Tensor | None:
    """The parameter or buffer of that path, if there is one."""
    holder, _, name = path.rpartition(".")
    tensor = getattr(module_at(model, holder), name, None)
    return tensor if isinstance(tensor, Tensor) else None


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The module of that path, if there is one."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _aliases(model: nn.Module) -> dict[int, list[tuple[str, str]]]:
    """Identity of each tensor -> every (module path, attribute) that holds it."""
    aliases: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for holder, module in model.named_modules(remove_duplicate=False):
        for name, tensor in (*module.named_parameters("", False, False), *module.named_buffers("", False, False)):
            aliases[id(tensor)].append((holder, name))
    return aliases


def _with_only(tensor: Tensor, dims: Mapping[int, Sequence[int]]) -> Tensor:
    """A copy of `tensor` with only the given indices of each dimension; a parameter gives a parameter."""
    new = tensor.detach()
    for dim, keep in dims.items():
        new = new.index_select(dim, torch.tensor(keep, device=tensor.device))
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(new, requires_grad=tensor.requires_grad)
    return new


def _fix_attributes_(module: nn.Module) -> None:
    """Makes the sizes that a torch layer keeps as attributes agree with its tensors."""
    for kind, fix in ATTRIBUTES.items():
        if isinstance(module, kind):
            fix(module)


def _linear(module: Any) -> None:
    module.out_features, module.in_features = module.weight.shape


def _conv(module: Any) -> None:
    rows, columns = module.weight.shape[:2]
    if module.groups == module.in_channels > 1:
        # depthwise: channels go with their group, the multiplier stays
        multiplier = 1 if module.transposed else module.out_channels // module.groups
        module.groups = rows // multiplier
    if module.transposed:
        module.in_channels, module.out_channels = rows, columns * module.groups
    else:
        module.in_channels, module.out_channels = columns * module.groups, rows


def _batch_norm(module: Any) -> None:
    state = module.weight if module.weight is not None else module.running_mean
    if state is not None:
        module.num_features = state.shape[0]


def _group_norm(module: Any) -> None:
    module.num_channels = module.weight.shape[0]


def _layer_norm(module: Any) -> None:
    module.normalized_shape = tuple(module.weight.shape)


def _embedding(module: Any) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _recurrent(module: Any) -> None:
    module.input_size = module.weight_ih_l0.shape[1]
    module.hidden_size = module.weight_hh_l0.shape[0] // {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    module.proj_size = module.weight_hh_l0.shape[1] if module.proj_size else 0


def _multihead(module: Any) -> None:
    """Heads keep their size, so that their number follows the width."""
    module.embed_dim = module.out_proj.weight.shape[0]
    module.num_heads = module.embed_dim // module.head_dim
    packed = module.in_proj_weight is not None
    module.kdim = module.embed_dim if packed else module.k_proj_weight.shape[1]
    module.vdim = module.embed_dim if packed else module.v_proj_weight.shape[1]


def _prelu(module: Any) -> None:
    module.num_parameters = module.weight.shape[0]


ATTRIBUTES: dict[type[nn.Module], Callable[[Any], None]] = {
    nn.Linear: _linear,
    nn.modules.conv._ConvNd: _conv,
    nn.modules.batchnorm._NormBase: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.Embedding: _embedding,
    nn.RNNBase: _recurrent,
    nn.MultiheadAttention: _multihead,
    nn.PReLU: _prelu,
}
