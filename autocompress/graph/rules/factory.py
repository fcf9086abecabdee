"""Rules of ops that make tensors, of tuple access, and of assertions."""

from __future__ import annotations

from typing import Any

from torch import fx

from autocompress.graph.flow import Flow, Value, fixed, rule_key
from autocompress.graph.labels import Dims, NoRuleError
from autocompress.graph.rules.arguments import shape_of

UNIFORM = "zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full scalar_tensor empty empty_like"
COUNTED = "arange linspace eye tril_indices triu_indices"


def uniform(node: fx.Node, flow: Flow) -> Dims:
    """All slots are equal, so that any of them can go; whether the size follows is found by running a pruned copy."""
    return tuple(flow.labels.fresh(size, uniform=True) for size in shape_of(node))


def counted(node: fx.Node, flow: Flow) -> Value:
    """Slots differ and the number of them is the user's."""
    return fixed(node.meta.get("val"), f"meets a tensor of fixed size made by {rule_key(node)}")


def getitem(node: fx.Node, flow: Flow) -> Any:
    """One item of a tuple of values."""
    values = flow.values[node.all_input_nodes[0]]
    if not isinstance(values, list):
        raise NoRuleError("the value is not a tuple of tensors")
    return values[node.args[1]]  # type: ignore[index]


def nothing(node: fx.Node, flow: Flow) -> None:
    """Checks and sizes hold no tensor; what they compare is checked again by running a pruned copy."""


FACTORY = (
    {f"aten.{name}": uniform for name in UNIFORM.split()}
    | {f"aten.{name}": counted for name in COUNTED.split()}
    | {
        "getitem": getitem,
        "aten._assert_tensor_metadata": nothing,
        "aten._assert_async": nothing,
        "aten.sym_size": nothing,
    }
)
