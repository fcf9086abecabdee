"""Reads a model through `torch.export`: layers, channel groups, residual branches."""

from autocompress.graph.inspect import inspect_model
from autocompress.graph.model_graph import ChannelGroup, Coupling, Frozen, Layer, ModelGraph, ResidualBranch

__all__ = ["ChannelGroup", "Coupling", "Frozen", "Layer", "ModelGraph", "ResidualBranch", "inspect_model"]
