"""Finds layers in disguise: subclasses of torch's layers with a forward of their own, and layers of computed weights.

TensorFlow's "same" padding, standardised weights, parametrised and weight-normed layers: what counts is the one
convolution or product in the trace, not the class.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx, nn

from autocompress.graph.flow import argument, has_argument, rule_key
from autocompress.graph.trace import Trace

_CHECKS = frozenset({"aten._assert_tensor_metadata"})


def is_disguised(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module of this kind may compute something else than torch's, or computes its weight."""
    return isinstance(module, kind) and isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)


def why_not(path: str, node: fx.Node, trace: Trace) -> str | None:
    """None where rounding the operands of one call is rounding the layer, else the reason why not.

    Args:
        path: of the module.
        node: the convolution or product that its forward calls.
        trace: of the model.
    """
    if _outputs(path, trace) != {node}:
        return "its forward is its own and gives more, or something else, than its one convolution or product"
    bias = argument(node, "bias") if has_argument(node, "bias") else None
    if bias is not None and trace.states.get(bias) != f"{path}.bias":
        return "its bias is computed"
    sources = weight_sources(node, trace)
    if sources is None:
        return "its weight depends on the input"
    own = [item for item in sources if item in trace.states]
    if not own or not all(trace.states[item].startswith(f"{path}.") for item in own):
        return "its weight is not its own"
    readers = {user for item in sources for user in item.users if rule_key(user) not in _CHECKS}
    if not readers <= {*sources, node}:
        return "its weight is also used outside the layer"
    return None


def _outputs(path: str, trace: Trace) -> set[fx.Node]:
    """The nodes of a module that others read."""
    own = {node for node in trace.nodes if any(item[0] == path for item in _stack(node))}
    return {node for node in own if any(user not in own for user in node.users)}


def _stack(node: fx.Node) -> Iterable[tuple[str, object]]:
    stack: dict[str, tuple[str, object]] = node.meta.get("nn_module_stack") or {}
    return stack.values()


def is_computed(node: fx.Node, trace: Trace) -> bool:
    """Whether the weight of a call is no parameter itself."""
    return argument(node, "weight") not in trace.states


def weight_sources(node: fx.Node, trace: Trace) -> set[fx.Node] | None:
    """The nodes that the weight of a call is computed from, itself among them; None where an input is one of them."""
    found: set[fx.Node] = set()
    waiting = [argument(node, "weight")]
    while waiting:
        item = waiting.pop()
        if item in trace.inputs:
            return None
        if item not in found:
            found.add(item)
            waiting.extend(item.all_input_nodes)
    return found
