"""Knows the ops that only move values: their results hold values of their first argument, and perhaps zeros."""

from __future__ import annotations

from torch import fx

from autocompress.graph.flow import argument, has_argument, rule_key

COMMUTING = frozenset(
    {
        "aten.view",
        "aten.reshape",
        "aten.flatten",
        "aten.unflatten",
        "aten._unsafe_view",
        "aten.squeeze",
        "aten.unsqueeze",
    }
    | {"aten.contiguous", "aten.clone", "aten.alias", "aten.detach", "aten.dropout", "aten.feature_dropout"}
    | {"aten.max_pool2d", "aten.adaptive_max_pool2d"}
)
"""Ops that give the same result before and after rounding to a grid, whatever else reads their argument."""

_REORDERING = frozenset(
    {"aten.permute", "aten.transpose", "aten.movedim", "aten.chunk", "aten.split", "aten.split_with_sizes"}
    | {"getitem", "aten.slice", "aten.select", "aten.narrow", "aten.unbind", "aten.channel_shuffle"}
    | {"aten.pixel_shuffle", "aten.pixel_unshuffle", "aten.upsample_nearest2d", "aten.t"}
)


def is_zero_pad(node: fx.Node) -> bool:
    """Whether a node puts zeros around its argument; zero is a level of every grid."""
    key = rule_key(node)
    if key not in ("aten.pad", "aten.constant_pad_nd"):
        return False
    constant = not has_argument(node, "mode") or argument(node, "mode") == "constant"
    return bool(constant and argument(node, "value") in (None, 0, 0.0))


def commutes(node: fx.Node) -> bool:
    """Whether rounding before a node is rounding behind it, and engines carry integers through it."""
    return rule_key(node) in COMMUTING or is_zero_pad(node)


def moves(node: fx.Node) -> bool:
    """Whether a node commutes, or takes its argument apart or in another order."""
    return commutes(node) or rule_key(node) in _REORDERING
