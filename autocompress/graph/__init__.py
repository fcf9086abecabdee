"""Reads a model through `torch.export`: layers, channel groups, residual branches."""

from autocompress.graph.inspect import inspect_model
from autocompress.graph.model_graph import (
    ChannelGroup,
    Coupling,
    Frozen,
    IntegerOp,
    Layer,
    ModelGraph,
    ResidualBranch,
)
from autocompress.graph.without_bits import without_bits

__all__ = [
    "ChannelGroup",
    "Coupling",
    "Frozen",
    "IntegerOp",
    "Layer",
    "ModelGraph",
    "ResidualBranch",
    "inspect_model",
    "without_bits",
]
