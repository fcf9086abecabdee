"""Runs a trace of the original model with channels masked at every point: the reference for a pruned copy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from autocompress.graph.flow import Flow, Value, rule_key
from autocompress.graph.labels import Dim, Fixed, Slots
from autocompress.graph.trace import is_in_place

REDUCTIONS = ("mean", "amax", "amin", "logsumexp", "softmax", "log_softmax", "_softmax", "_log_softmax")
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
        """The model's output tensors, flat, for these parameters and buffers and these flat inputs."""
        trace = self._flow.trace
        waiting = dict(zip(trace.inputs, inputs, strict=True))
        values: dict[fx.Node, Any] = {}
        last_use = {source: node for node in trace.nodes for source in node.all_input_nodes}
        dying: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for source, node in last_use.items():
            dying[node].append(source)
        for node in trace.nodes:
            if node.op == "output":
                result = fx.map_arg(node.args, lambda item: values[item])
                return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
            source_node = node.op == "placeholder"
            value = self._source(node, states, waiting) if source_node else self._call(node, values)
            values[node] = self._mask(value, self._flow.values.get(node))
            for source in dying[node]:
                del values[source]
        raise AssertionError("a trace ends with its output node")

    def _source(self, node: fx.Node, states: Mapping[str, Tensor], waiting: dict[fx.Node, Any]) -> Any:
        trace = self._flow.trace
        if node in trace.states:
            return states[trace.states[node]].detach()
        return trace.constants[node] if node in trace.constants else waiting[node]

    def _call(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node in self._sums:
            return values[self._sums[node]]
        target: Any = node.target
        compact = rule_key(node) in COMPACT
        read = (lambda item: self._compact(values[item], item)) if compact else values.__getitem__
        arguments: Any = fx.map_arg((node.args, node.kwargs), read)
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
