"""LSTM and GRU modules level by level: the inputs of each level, and the module with factorized weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from autocompress.compression.low_rank.decomposition import Factors
from autocompress.compression.low_rank.layers import linear

Steps = Tensor | PackedSequence


class StackedRecurrent(nn.Module):
    """An `nn.LSTM` or `nn.GRU` of several levels, each level a module of its own between linear layers.

    torch has no container that passes states on, and keeps the weights of all levels in one module. With input weights
    U V a level reads V x and has the input weights U: that is exact. With hidden weights U V an LSTM keeps the
    projected state V h, has the hidden weights U, and gives D V h.

    Args:
        module: whose attributes and dropout are taken.
        inputs: for each level a linear layer V without bias, or `nn.Identity`.
        levels: modules of one level.
        outputs: for each level a linear layer D without bias, or `nn.Identity`.
    """

    def __init__(
        self,
        module: nn.RNNBase,
        inputs: Sequence[nn.Module],
        levels: Sequence[nn.RNNBase],
        outputs: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        self.mode, self.batch_first, self.bidirectional = module.mode, module.batch_first, module.bidirectional
        self.input_size, self.hidden_size = module.input_size, module.hidden_size
        self.num_layers, self.dropout = module.num_layers, module.dropout
        self.inputs, self.levels, self.outputs = nn.ModuleList(inputs), nn.ModuleList(levels), nn.ModuleList(outputs)

    def forward(self, input: Steps, hx: Any = None) -> tuple[Steps, Any]:
        """Shapes as `nn.LSTM` and `nn.GRU`, packed sequences too."""
        last_states: list[Any] = []
        for index, (inward, level, outward) in enumerate(zip(self.inputs, self.levels, self.outputs, strict=True)):
            state = _projected(level, state_of_level(self, hx, index))
            input, state = level(_on_rows(inward, input), state)
            input = _on_rows(outward, input)
            last_states.append((outward(state[0]), state[1]) if self.mode == "LSTM" else state)
            if self.training and self.dropout > 0 and index < self.num_layers - 1:
                input = _on_rows(lambda rows: F.dropout(rows, self.dropout), input)
        if self.mode == "LSTM":
            return input, tuple(torch.cat(parts) for parts in zip(*last_states, strict=True))
        return input, torch.cat(last_states)


def split_recurrent(module: nn.RNNBase, scheme: str, factors: Sequence[Factors | None]) -> StackedRecurrent:
    """The module with these factors of each level; None leaves a level unsplit.

    Args:
        module: not touched.
        scheme: "channel" for the input weights, "recurrent" for the hidden ones.
        factors: for each level (1, rank, in) and (1, out, rank), out and in as `ranks.parts` has them.
    """
    whole: tuple[nn.Module, nn.RNNBase, nn.Module]
    made = []
    for index, pair in enumerate(factors):
        if pair is None:
            whole = nn.Identity(), _level(module, index), nn.Identity()
        elif scheme == "recurrent":
            whole = _with_hidden_factors(module, index, pair[0][0], pair[1][0])
        else:
            whole = _with_input_factors(module, index, pair[0][0], pair[1][0])
        made.append(whole)
    inputs, levels, outputs = zip(*made, strict=True)
    return StackedRecurrent(module, inputs, levels, outputs).train(module.training)


def _with_input_factors(
    module: nn.RNNBase, index: int, first: Tensor, second: Tensor
) -> tuple[nn.Module, nn.RNNBase, nn.Module]:
    names = ("weight_ih_l0", "weight_ih_l0_reverse") if module.bidirectional else ("weight_ih_l0",)
    weights = dict(zip(names, second.chunk(len(names)), strict=True))
    return linear(first, None, module), _level(module, index, weights), nn.Identity()


def _with_hidden_factors(
    module: nn.RNNBase, index: int, first: Tensor, second: Tensor
) -> tuple[nn.Module, nn.RNNBase, nn.Module]:
    hidden, output = second.split([len(second) - module.hidden_size, module.hidden_size])
    level = _level(module, index, {"weight_hh_l0": hidden, "weight_hr_l0": first})
    return nn.Identity(), level, linear(output, None, module)


def _projected(level: Any, state: Any) -> Any:
    """A first state for a level that keeps V h."""
    if level.proj_size == 0 or state is None:
        return state
    return F.linear(state[0], level.weight_hr_l0), state[1]


def level_inputs(module: nn.RNNBase, x: Steps, state: Any = None) -> list[Tensor]:
    """What each level reads, and at last what the module gives; each (n_rows, features)."""
    seen = [_rows(x)]
    for index in range(module.num_layers):
        x, _ = _level(module, index)(x, state_of_level(module, state, index))
        seen.append(_rows(x))
    return seen


def state_of_level(module: Any, state: Any, index: int) -> Any:
    """A level's part of the first state, (directions, batch, hidden), or a pair of them for an LSTM."""
    if state is None:
        return None
    if isinstance(state, tuple):
        return tuple(state_of_level(module, part, index) for part in state)
    n = 2 if module.bidirectional else 1
    return state[index * n : (index + 1) * n]


def stacked_weights(module: nn.RNNBase, kind: str, index: int) -> Tensor:
    """Weights "ih" or "hh" of a level, those of both directions stacked: (directions × gates × hidden, inputs)."""
    suffixes = ("", "_reverse") if module.bidirectional else ("",)
    return torch.cat([getattr(module, f"weight_{kind}_l{index}{suffix}").detach() for suffix in suffixes])


def _level(module: nn.RNNBase, index: int, weights: Mapping[str, Tensor] = MappingProxyType({})) -> nn.RNNBase:
    """A copy of level `index` alone, with these of its weights in place of the module's."""
    kind: Any = nn.LSTM if module.mode == "LSTM" else nn.GRU
    source = getattr(module, f"weight_ih_l{index}")
    projection = {"proj_size": len(weights["weight_hr_l0"])} if "weight_hr_l0" in weights else {}
    level: nn.RNNBase = kind(
        weights.get("weight_ih_l0", source).shape[1],
        module.hidden_size,
        bias=module.bias,
        batch_first=module.batch_first,
        bidirectional=module.bidirectional,
        device="meta",
        **projection,
    )
    for name, _ in list(level.named_parameters()):
        values = weights.get(name)
        if values is None:
            values = getattr(module, name.replace("_l0", f"_l{index}"))
        values = values.detach().to(source).clone()
        setattr(level, name, nn.Parameter(values, requires_grad=source.requires_grad))
    return level.train(module.training)


def _rows(x: Steps) -> Tensor:
    return x.data if isinstance(x, PackedSequence) else x.flatten(0, -2)


def _on_rows(layer: Any, x: Steps) -> Any:
    return x._replace(data=layer(x.data)) if isinstance(x, PackedSequence) else layer(x)
