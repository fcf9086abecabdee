"""Finds the op and the module where tracing or writing a model failed, for the error message."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import FrameType

from torch import fx, nn


def failing_place(error: BaseException, model: nn.Module) -> str:
    """Gives "op aten.erfinv.default of module 'head.act'", "module 'head'", or "the model" where nothing tells.

    The tracebacks hold it: the graph's node that was being written, or the module whose `forward` was being traced.

    Args:
        error: from the exporter.
        model: that was exported.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    place = "the model"
    for frame in _frames(error):
        node, module = frame.f_locals.get("node"), frame.f_locals.get("self")
        if isinstance(node, fx.Node):
            return f"op {node.target} of module {caller_of(node)!r}"
        if id(module) in paths:
            place = f"module {paths[id(module)]!r}"
    return place


def caller_of(node: fx.Node) -> str:
    """Path of the innermost module whose forward made this call."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


def _frames(error: BaseException | None) -> Iterator[FrameType]:
    """Outermost first, those of the causes behind those of what they caused."""
    while error is not None:
        yield from (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        error = error.__cause__ or error.__context__
