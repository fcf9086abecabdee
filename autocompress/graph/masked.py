"""Runs a trace of the original model with masked channels: the reference for a pruned copy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from autocompress.graph.flow import Flow, Value, rule_key
from autocompress.graph.labels import Dim, Fixed, Slots
from autocompress.graph.trace import is_in_place

REDUCTIONS = ("mean", "amax", "amin", "var", "std", "logsumexp", "softmax", "log_softmax", "_softmax", "_log_softmax")
COMPACT = frozenset(f"aten.{name}" for name in (*REDUCTIONS, "layer_norm", "rms_norm", "group_norm"))
"""Ops that a masked slot would disturb: they are run on the slots that are left."""


class MaskedRun:
    """Evaluates the nodes of a trace in full size, with zeros in the slots of removed channels.

    Args:
        flow: labels of every value.
        component: component of every label, shape `(n_labels,)`.
        removed: components that are masked.
        sums: residual sum -> its operand that stays, for the branches that are dropped.
    """

    def __init__(
        self, flow: Flow, component: Slots, removed: set[int], sums: Mapping[fx.Node, fx.Node] | None = None
    ) -> None:
        self._flow = flow
        self._sums = sums or {}
        self._gone = np.isin(component, np.fromiter(removed, dtype=np.int64, count=len(removed)))

    def outputs(self, states: Mapping[str, Tensor], inputs: list[Any]) -> list[Tensor]:
        """The model's output tensors for these parameters and buffers and these flat inputs.

        Values live until their last use, and masked parameters only while they are used.
        """
        trace = self._flow.trace
        values: dict[fx.Node, Any] = {**trace.constants, **dict(zip(trace.inputs, inputs, strict=True))}

        def read(node: fx.Node) -> Any:
            if node in trace.states:
                return self._mask(states[trace.states[node]].detach(), self._flow.values[node])
            return values[node]

        last_use = {source: node for node in trace.nodes for source in node.all_input_nodes}
        dying: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for source, node in last_use.items():
            dying[node].append(source)
        for node in trace.nodes:
            if node.op == "output":
                break
            if node.op != "placeholder":
                values[node] = self._mask(self._call(node, read), self._flow.values.get(node))
            for source in dying[node]:
                values.pop(source, None)
        return [value for node in trace.outputs if isinstance(value := read(node), Tensor)]

    def _call(self, node: fx.Node, read: Callable[[fx.Node], Any]) -> Any:
        if node in self._sums:
            return read(self._sums[node])
        if node.op == "get_attr":
            return getattr(node.graph.owning_module, str(node.target))
        target: Any = node.target
        compact = rule_key(node) in COMPACT
        arguments: Any = fx.map_arg(
            (node.args, node.kwargs), (lambda item: self._compact(read(item), item)) if compact else read
        )
        args, kwargs = arguments
        if is_in_place(node):
            args = (args[0].clone(), *args[1:])
        if not compact:
            return target(*args, **kwargs)
        if rule_key(node) in ("aten.layer_norm", "aten.rms_norm"):
            args = (args[0], list(args[0].shape[-len(args[1]) :]), *args[2:])
        return self._spread(target(*args, **kwargs), node)

    def _left(self, dim: Dim) -> Tensor | None:
        if isinstance(dim, Fixed):
            return None
        gone = self._gone[dim]
        return torch.from_numpy(np.flatnonzero(~gone)) if gone.any() else None

    def _compact(self, value: Any, node: fx.Node) -> Any:
        dims = self._flow.values.get(node)
        if not isinstance(value, Tensor) or not isinstance(dims, tuple):
            return value
        for place, dim in enumerate(dims):
            left = self._left(dim)
            if left is not None:
                value = value.index_select(place, left.to(value.device))
        return value

    def _spread(self, value: Tensor, node: fx.Node) -> Tensor:
        for place, dim in enumerate(self._flow.values[node]):
            left = self._left(dim)
            if left is not None:
                shape = (*value.shape[:place], len(dim), *value.shape[place + 1 :])
                value = value.new_zeros(shape).index_copy(place, left.to(value.device), value)
        return value

    def _mask(self, value: Any, dims: Value) -> Any:
        if isinstance(dims, list) and isinstance(value, (tuple, list)):
            return [self._mask(item, item_dims) for item, item_dims in zip(value, dims, strict=True)]
        if not isinstance(value, Tensor) or not isinstance(dims, tuple):
            return value
        for place, dim in enumerate(dims):
            if isinstance(dim, Fixed) or not self._gone[dim].any():
                continue
            gone = torch.from_numpy(np.flatnonzero(self._gone[dim])).to(value.device)
            value = value.index_fill(place, gone, 0)
        return value
