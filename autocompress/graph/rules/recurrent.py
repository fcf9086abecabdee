"""Rules of LSTM, GRU and plain RNN: hidden unit j of all layers and directions is one channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from autocompress.graph.flow import CONSUMER, PRODUCER, Flow, Rule
from autocompress.graph.labels import Dim, Dims, Fixed, NoRuleError, Slots
from autocompress.graph.rules.arguments import argument


def recurrent(gates: int) -> Rule:
    """A rule for cells whose weights stack `gates` blocks of rows; torch keeps one hidden size for all layers."""

    def rule(node: fx.Node, flow: Flow) -> list[Dims]:
        params: list[Any] = list(argument(node, "params"))
        directions = 2 if argument(node, "bidirectional") else 1
        per_cell = 4 if argument(node, "has_biases") else 2
        if len(params) != argument(node, "num_layers") * directions * per_cell:
            raise NoRuleError("projected or packed weights")
        source = flow.dims(argument(node, "input"))
        units: Slots | None = None
        for start in range(0, len(params), per_cell):
            cell = params[start : start + per_cell]
            layer = start // per_cell // directions
            reads: Dim = source[-1] if layer == 0 or units is None else np.tile(units, directions)
            own = _cell(cell, reads, gates, flow)
            flow.labels.tie(own, own if units is None else units)
            units = own if units is None else units
        if units is None:
            raise NoRuleError("there are no weights")
        given = argument(node, "hx")
        for state in given if isinstance(given, (list, tuple)) else [given]:
            flow.labels.tie(units, flow.dims(state)[-1])
        outer = source[:-1]
        batch = outer[0] if argument(node, "batch_first") else outer[-1]
        state_dims = (Fixed("counts the layers of a recurrent net"), batch, units)
        n_states = len(node.meta["val"]) - 1
        return [(*outer, np.tile(units, directions)), *(state_dims for _ in range(n_states))]

    return rule


def _cell(cell: list[Any], reads: Dim, gates: int, flow: Flow) -> Slots:
    """Ties the tensors of one layer and direction; the labels of its hidden units."""
    inner, outer = flow.dims(cell[0]), flow.dims(cell[1])
    flow.labels.tie(reads, inner[1])
    flow.play(cell[0], 1, CONSUMER)
    columns = outer[1]
    if isinstance(columns, Fixed):
        raise NoRuleError("the hidden weight is fixed")
    flow.play(cell[1], 1, CONSUMER)
    for tensor in cell:
        rows = flow.dims(tensor)[0]
        if isinstance(rows, Fixed):
            raise NoRuleError("a weight is fixed")
        flow.labels.tie_rows(np.concatenate([columns.reshape(1, -1), rows.reshape(gates, -1)]))
        flow.play(tensor, 0, PRODUCER)
    return columns


RECURRENT: dict[str, Rule] = {
    "aten.lstm": recurrent(4),
    "aten.gru": recurrent(3),
    "aten.rnn_tanh": recurrent(1),
    "aten.rnn_relu": recurrent(1),
}
