"""LSTM and GRU modules level by level: what each level reads, and the same net with thin input weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from autocompress.compression.low_rank.decomposition import Factors
from autocompress.compression.low_rank.layers import linear

Steps = Tensor | PackedSequence


class StackedRecurrent(nn.Module):
    """What `nn.LSTM` or `nn.GRU` of several levels does, each level a module of its own behind a linear layer.

    torch has no container that passes states on, and keeps the input weights of all levels in one module. With input
    weights U V the level reads V x and has the input weights U: that is exact.

    Args:
        module: whose attributes and dropout are taken.
        inputs: for each level a linear layer without bias, or `nn.Identity` where the input weights are whole.
        levels: modules of one level.
    """

    def __init__(self, module: nn.RNNBase, inputs: Sequence[nn.Module], levels: Sequence[nn.RNNBase]) -> None:
        super().__init__()
        self.mode, self.batch_first, self.bidirectional = module.mode, module.batch_first, module.bidirectional
        self.input_size, self.hidden_size = module.input_size, module.hidden_size
        self.num_layers, self.dropout = module.num_layers, module.dropout
        self.inputs, self.levels = nn.ModuleList(inputs), nn.ModuleList(levels)

    def forward(self, input: Steps, hx: Any = None) -> tuple[Steps, Any]:
        """Shapes as `nn.LSTM` and `nn.GRU`, packed sequences too."""
        last_states = []
        for index, (project, level) in enumerate(zip(self.inputs, self.levels, strict=True)):
            input, state = level(_on_rows(project, input), state_of_level(self, hx, index))
            last_states.append(state)
            if self.training and self.dropout > 0 and index < self.num_layers - 1:
                input = _on_rows(lambda rows: F.dropout(rows, self.dropout), input)
        if isinstance(last_states[0], tuple):
            return input, tuple(torch.cat(parts) for parts in zip(*last_states, strict=True))
        return input, torch.cat(last_states)


def split_recurrent(module: nn.RNNBase, factors: Sequence[Factors | None]) -> StackedRecurrent:
    """The module with these factors of each level's input weights; None leaves a level's as they are.

    Args:
        module: not touched.
        factors: for each level (in -> rank, rank -> directions × gates × hidden), each (1, out, in).
    """
    inputs: list[nn.Module] = []
    levels = []
    for index, pair in enumerate(factors):
        if pair is None:
            inputs.append(nn.Identity())
            levels.append(_level(module, index))
            continue
        first, second = pair
        inputs.append(linear(first[0], None, module))
        level = _level(module, index, n_inputs=first.shape[1])
        for name, weight in zip(_input_names(level, 0), second[0].chunk(len(_suffixes(module))), strict=True):
            with torch.no_grad():
                getattr(level, name).copy_(weight)
        levels.append(level)
    return StackedRecurrent(module, inputs, levels).train(module.training)


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


def input_weights(module: nn.RNNBase, index: int) -> Tensor:
    """Input weights of a level, those of both directions stacked: (directions × gates × hidden, inputs)."""
    return torch.cat([getattr(module, name).detach() for name in _input_names(module, index)])


def _input_names(module: nn.RNNBase, index: int) -> list[str]:
    return [f"weight_ih_l{index}{suffix}" for suffix in _suffixes(module)]


def _suffixes(module: nn.RNNBase) -> tuple[str, ...]:
    return ("", "_reverse") if module.bidirectional else ("",)


def _level(module: nn.RNNBase, index: int, n_inputs: int | None = None) -> nn.RNNBase:
    """A copy of level `index` alone; with `n_inputs` its input weights are zeros of that width."""
    first = getattr(module, f"weight_ih_l{index}")
    kind: Any = nn.LSTM if module.mode == "LSTM" else nn.GRU
    level: nn.RNNBase = kind(
        first.shape[1] if n_inputs is None else n_inputs,
        module.hidden_size,
        bias=module.bias,
        batch_first=module.batch_first,
        bidirectional=module.bidirectional,
        device="meta",
    )
    for name, _ in list(level.named_parameters()):
        source = getattr(module, name.replace("_l0", f"_l{index}"))
        values = source.detach().clone()
        if n_inputs is not None and name.startswith("weight_ih"):
            values = values.new_zeros(len(values), n_inputs)
        setattr(level, name, nn.Parameter(values, requires_grad=source.requires_grad))
    return level.train(module.training)


def _rows(x: Steps) -> Tensor:
    return x.data if isinstance(x, PackedSequence) else x.flatten(0, -2)


def _on_rows(layer: Any, x: Steps) -> Any:
    return x._replace(data=layer(x.data)) if isinstance(x, PackedSequence) else layer(x)
