"""Knows the ops that cut values off at constants: ReLU, ReLU6, clamp and hardtanh are one thing."""

from __future__ import annotations

from torch import fx

from autocompress.graph.flow import argument, has_argument, rule_key

_FIXED: dict[str, tuple[float, float | None]] = {"aten.relu": (0.0, None), "aten.relu6": (0.0, 6.0)}
_NAMED = {
    "aten.clamp": ("min", "max"),
    "aten.clip": ("min", "max"),
    "aten.clamp_min": ("min", None),
    "aten.clamp_max": (None, "max"),
    "aten.hardtanh": ("min_val", "max_val"),
}
"""Op -> names of its arguments for the lower and the upper bound."""


def bounds_of(node: fx.Node) -> tuple[float | None, float | None] | None:
    """The lower and upper bound that a node cuts its first argument off at; None for any other op.

    Bounds that are tensors or computed give None, as does an op without any bound.
    """
    key = rule_key(node)
    if key in _FIXED:
        return _FIXED[key]
    if key not in _NAMED:
        return None
    values = [argument(node, name) if name is not None and has_argument(node, name) else None for name in _NAMED[key]]
    if values == [None, None] or not all(value is None or isinstance(value, int | float) for value in values):
        return None
    low, high = (None if value is None else float(value) for value in values)
    return low, high


def relu_ceiling(node: fx.Node) -> tuple[bool, float | None]:
    """Whether a node cuts off at zero from below, as ReLU does, and where it cuts off from above, if it does."""
    bounds = bounds_of(node)
    if bounds is None or bounds[0] != 0.0 or (bounds[1] is not None and bounds[1] <= 0):
        return False, None
    return True, bounds[1]
