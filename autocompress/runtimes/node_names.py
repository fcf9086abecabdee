"""Names the nodes of an ONNX graph after the modules that they come from, so that a profile can be read by layer."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"
_ACTIVATIONS = ("Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh")


def name_nodes_by_module_(model: onnx.ModelProto) -> None:
    """Puts the module's path and a slash before each node's name; in place.

    A node that alone reads a module's weight is of that module. For the others (the exporter keeps equal weights once)
    its note lists the modules around the node, outermost first, and last the operation itself.
    """
    n_readers = Counter(name for node in model.graph.node for name in node.input)
    stored = (item.name for item in model.graph.initializer)
    weights = {name for name in stored if name.endswith(".weight") and n_readers[name] == 1}
    for node in model.graph.node:
        own = next((name.removesuffix(".weight") for name in node.input if name in weights), "")
        scopes = next((item.value for item in node.metadata_props if item.key == _SCOPES), "[]")
        path = own or next(iter(ast.literal_eval(scopes)[-2:-1]), "")
        if path:
            node.name = f"{path}/{node.name}"


def module_of(node_name: str) -> str:
    """The module's path that `name_nodes_by_module_` wrote; "" for a node that has none."""
    path, slash, _ = node_name.partition("/")
    return path if slash else ""


def modules_of_values(file: Path) -> dict[str, str]:
    """Name of each value in an ONNX file -> path of the module that computes it, seen through activations.

    A runtime that fuses an activation into the layer before it may name the whole after the activation's output.
    """
    nodes = onnx.load(file, load_external_data=False).graph.node
    producer = {output: node for node in nodes for output in node.output}

    def path(value: str) -> str:
        node = producer[value]
        while node.op_type in _ACTIVATIONS and node.input[0] in producer:
            node = producer[node.input[0]]
        return module_of(node.name)

    return {value: path(value) for value in producer}
