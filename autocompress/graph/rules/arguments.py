"""Reads the arguments of an ATen call by the names of its schema."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx

from autocompress.graph.labels import NoRuleError


def argument(node: fx.Node, name: str) -> Any:
    """The argument of that name: given by position, by keyword, or the schema's default.

    Raises:
        NoRuleError: the op has no argument of that name, or it is neither given nor has a default.
    """
    for place, item in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if item.name != name:
            continue
        if place < len(node.args):
            return node.args[place]
        if name in node.kwargs:
            return node.kwargs[name]
        if item.has_default_value():
            return item.default_value
    raise NoRuleError(f"no argument {name!r}")


def has_argument(node: fx.Node, name: str) -> bool:
    """Whether the op's schema has an argument of that name."""
    return any(item.name == name for item in node.target._schema.arguments)  # type: ignore[union-attr]


def shape_of(node: Any) -> tuple[int, ...]:
    """The shape of a node's tensor for the example inputs.

    Raises:
        NoRuleError: the node holds no tensor, or its shape depends on data.
    """
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor):
        raise NoRuleError(f"{node!r} is not a tensor")
    try:
        return tuple(operator.index(size) for size in value.shape)
    except Exception as error:  # an unbacked symbolic size raises a private torch class
        raise NoRuleError("its shape depends on data") from error


def axis(dim: Any, rank: int) -> int:
    """A dimension counted from the front.

    Raises:
        NoRuleError: it is not an integer.
    """
    if not isinstance(dim, int):
        raise NoRuleError(f"dimension {dim!r} is not an integer")
    return dim % rank if rank else 0
