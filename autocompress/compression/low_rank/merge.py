"""Multiplies factors out to the dense layer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compression.low_rank.decomposition import compose
from autocompress.compression.low_rank.layers import ParallelSum
from autocompress.compression.low_rank.recurrent import StackedRecurrent
from autocompress.compression.quantize import QuantizedLayer
from autocompress.errors import CompressionError


def merge(module: nn.Module) -> nn.Module:
    """The plain layer that computes the same as the factors of a split layer.

    Args:
        module: what `factorize_` put in a layer's place; not touched.

    Raises:
        CompressionError: it is nothing of that kind.
    """
    if isinstance(module, ParallelSum):
        whole: Any = merge(module.low_rank)
        residual: Any = module.residual
        with torch.no_grad():
            whole.weight += residual.rounded_weight() if isinstance(residual, QuantizedLayer) else residual.weight
        return whole  # type: ignore[no-any-return]
    row = list(module.children()) if isinstance(module, nn.Sequential) else []
    kinds = {type(layer) for layer in row}
    if isinstance(module, StackedRecurrent):
        merged = _merged_recurrent(module)
    elif [type(layer) for layer in row] == [nn.Embedding, nn.Linear]:
        merged = _merged_embedding(row[0], row[1])
    elif len(row) > 1 and kinds == {nn.Linear}:
        merged = _merged_linear(row)
    elif len(row) > 1 and kinds in ({nn.Conv1d}, {nn.Conv2d}):
        merged = _merged_conv(row)
    else:
        raise CompressionError(
            f"only layers that were split can be merged, but a {type(module).__name__} is nothing that a split makes"
        )
    return merged.train(module.training)


def merge_hidden(module: StackedRecurrent) -> nn.Module:
    """The plain LSTM whose hidden weights are those that an LSTM with split hidden weights multiplies out to.

    Inner levels read what they read before: their input weights take in the projection of the level below. What the
    last level gives is the state itself, not its projection, which is why `merge` refuses.

    Args:
        module: split by the scheme "recurrent"; not touched.
    """
    plain = copy.deepcopy(module)
    read: Tensor | None = None
    with torch.no_grad():
        for index, (level, outward) in enumerate(zip(module.levels, module.outputs, strict=True)):
            weights = {name: tensor.double() for name, tensor in level.named_parameters()}
            if read is not None:
                weights["weight_ih_l0"] = weights["weight_ih_l0"] @ read
            read = None
            projection = weights.pop("weight_hr_l0", None)
            if projection is not None and isinstance(outward, nn.Linear):
                weights["weight_hh_l0"] = weights["weight_hh_l0"] @ projection
                read = outward.weight.double() @ projection
            whole = nn.LSTM(
                weights["weight_ih_l0"].shape[1],
                module.hidden_size,
                bias=bool(level.bias),
                batch_first=module.batch_first,
            )
            plain.levels[index] = _filled(whole, **weights, like=next(module.parameters()))
            plain.outputs[index] = nn.Identity()
    return _merged_recurrent(plain).train(module.training)


def _merged_linear(row: list[Any]) -> nn.Module:
    weight = compose(tuple(layer.weight.double()[None] for layer in row))[0]
    merged = nn.Linear(weight.shape[1], weight.shape[0], bias=row[-1].bias is not None)
    return _filled(merged, weight=weight, bias=row[-1].bias, like=row[0])


def _merged_embedding(table: Any, outward: Any) -> nn.Module:
    merged = nn.Embedding(table.num_embeddings, outward.out_features, table.padding_idx)
    return _filled(merged, weight=table.weight.double() @ outward.weight.double().mT, bias=None, like=table)


def _merged_conv(row: list[Any]) -> nn.Module:
    """Along each dimension only one of the layers has a kernel, a stride, a padding or a dilation."""
    n_groups = row[0].groups
    weight = compose(tuple(layer.weight.double().unflatten(0, (n_groups, -1)) for layer in row)).flatten(0, 1)
    kind: Any = type(row[0])
    merged = kind(
        weight.shape[1] * n_groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        _largest(row, "stride"),
        row[0].padding if isinstance(row[0].padding, str) else _largest(row, "padding"),
        _largest(row, "dilation"),
        groups=n_groups,
        bias=row[-1].bias is not None,
        padding_mode=row[0].padding_mode,
    )
    return _filled(merged, weight=weight, bias=row[-1].bias, like=row[0])


def _largest(row: list[Any], name: str) -> tuple[int, ...]:
    return tuple(max(sizes) for sizes in zip(*(getattr(layer, name) for layer in row), strict=True))


def _merged_recurrent(module: StackedRecurrent) -> nn.Module:
    if any(isinstance(layer, nn.Linear) for layer in module.outputs):
        raise CompressionError("an LSTM with split hidden weights gives a projected state, which no plain LSTM gives")
    kind: Any = nn.LSTM if module.mode == "LSTM" else nn.GRU
    merged = kind(
        module.input_size,
        module.hidden_size,
        module.num_layers,
        bias=module.levels[0].bias,
        batch_first=module.batch_first,
        dropout=module.dropout,
        bidirectional=module.bidirectional,
    )
    values = {}
    for index, (project, level) in enumerate(zip(module.inputs, module.levels, strict=True)):
        for name, tensor in level.named_parameters():
            whole = tensor.double()
            if name.startswith("weight_ih") and isinstance(project, nn.Linear):
                whole = whole @ project.weight.double()
            values[name.replace("_l0", f"_l{index}")] = whole
    return _filled(merged, **values, like=next(module.parameters()))


def _filled(merged: nn.Module, *, like: Any, **values: Tensor | None) -> nn.Module:
    source = like if isinstance(like, Tensor) else like.weight
    merged = merged.to(source)
    with torch.no_grad():
        for name, value in values.items():
            if value is not None:
                getattr(merged, name).copy_(value)
    return merged
