"""Rules of LSTM, GRU and plain RNN: hidden unit j of all layers and directions is one channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from autocompress.graph.flow import CONSUMER, PRODUCER, Flow, Rule, argument
from autocompress.graph.labels import Dim, Dims, Fixed, NoRuleError, Slots

States = tuple[Slots, Slots]
"""Labels of what a cell gives out at each step, and of its hidden units: the same, unless the LSTM projects them."""


def recurrent(gates: int) -> Rule:
    """A rule for cells whose weights stack `gates` blocks of rows; torch keeps one size for all layers."""

    def rule(node: fx.Node, flow: Flow) -> list[Dims]:
        params: list[Any] = list(argument(node, "params"))
        directions = 2 if argument(node, "bidirectional") else 1
        per_cell, left_over = divmod(len(params), argument(node, "num_layers") * directions)
        plain = 4 if argument(node, "has_biases") else 2
        if left_over or per_cell not in (plain, plain + 1):
            raise NoRuleError("packed weights")
        source = flow.dims(argument(node, "input"))
        states: States | None = None
        for start in range(0, len(params), per_cell):
            cell = params[start : start + per_cell]
            layer = start // per_cell // directions
            reads: Dim = source[-1] if layer == 0 or states is None else np.tile(states[0], directions)
            own = _cell(cell[:plain], cell[plain:], reads, gates, flow)
            for mine, common in zip(own, own if states is None else states, strict=True):
                flow.labels.tie(mine, common)
            states = own if states is None else states
        if states is None:
            raise NoRuleError("there are no weights")
        given = argument(node, "hx")
        for state, units in zip(given if isinstance(given, (list, tuple)) else [given], states, strict=False):
            flow.labels.tie(units, flow.dims(state)[-1])
        outer = source[:-1]
        batch = outer[0] if argument(node, "batch_first") else outer[-1]
        n_states = len(node.meta["val"]) - 1
        counted = Fixed("counts the layers of a recurrent net")
        return [(*outer, np.tile(states[0], directions)), *((counted, batch, units) for units in states[:n_states])]

    return rule


def _cell(cell: list[Any], projection: list[Any], reads: Dim, gates: int, flow: Flow) -> States:
    """Ties the tensors of one layer and direction; the labels of what it gives out and of its hidden units."""
    inner, outer = flow.dims(cell[0]), flow.dims(cell[1])
    flow.labels.tie(reads, inner[1])
    flow.play(cell[0], 1, CONSUMER)
    flow.play(cell[1], 1, CONSUMER)
    given = _labels(outer[1])
    units = _labels(outer[0]).reshape(gates, -1)[0]
    for tensor in cell:
        flow.labels.tie_rows(np.concatenate([units.reshape(1, -1), _labels(flow.dims(tensor)[0]).reshape(gates, -1)]))
        flow.play(tensor, 0, PRODUCER)
    if not projection:
        flow.labels.tie(given, units)
        return given, given
    made, read = flow.dims(projection[0])
    flow.labels.tie(given, made)
    flow.labels.tie(units, read)
    flow.play(projection[0], 0, PRODUCER)
    flow.play(projection[0], 1, CONSUMER)
    # torch takes equal sizes of both for a cell without projection; as unit j goes with projected unit j, and one of
    # the further units always stays, there are always more units
    flow.labels.tie(units[: len(given)], given)
    return given, units


def _labels(dim: Dim) -> Slots:
    if isinstance(dim, Fixed):
        raise NoRuleError("a weight is fixed")
    return dim


RECURRENT: dict[str, Rule] = {
    "aten.lstm": recurrent(4),
    "aten.gru": recurrent(3),
    "aten.rnn_tanh": recurrent(1),
    "aten.rnn_relu": recurrent(1),
}
