"""An ONNX graph with look-ups by value name that stay true while nodes come and go."""

from __future__ import annotations

from collections import Counter
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

_PACKED = (onnx.TensorProto.UINT4, onnx.TensorProto.BFLOAT16)


class ProtoGraph:
    """Look-ups by value name that stay true while nodes are removed."""

    def __init__(self, proto: onnx.GraphProto) -> None:
        self.proto = proto
        self.values = {
            item.name: numpy_helper.to_array(item) for item in proto.initializer if item.data_type not in _PACKED
        }
        self.producer = {name: node for node in proto.node for name in node.output}
        self.n_readers = Counter(name for node in proto.node for name in node.input)
        self.n_readers.update(item.name for item in proto.output)

    def add(self, name: str, value: NDArray[Any]) -> str:
        """Adds a constant; returns its name."""
        self.proto.initializer.append(numpy_helper.from_array(value, name))
        self.values[name] = value
        return name

    def add_proto(self, tensor: onnx.TensorProto) -> None:
        """Adds a constant of a type that numpy does not have."""
        self.proto.initializer.append(tensor)

    def insert_before(self, node: onnx.NodeProto, new: onnx.NodeProto) -> None:
        """Adds a node in front of another, where its readers come after it."""
        place = self._place(node)
        self.proto.node.insert(place, new)
        self.producer[new.output[0]] = self.proto.node[place]

    def substitute(self, node: onnx.NodeProto, new: onnx.NodeProto) -> None:
        """Puts another node with the same outputs in a node's place."""
        place = self._place(node)
        self.proto.node.insert(place, new)
        del self.proto.node[place + 1]
        self.producer[new.output[0]] = self.proto.node[place]

    def _place(self, node: onnx.NodeProto) -> int:
        output = node.output[0]
        return next(place for place, other in enumerate(self.proto.node) if other.output[0] == output)

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The node that alone reads a value; None where several do, or it is an output of the graph."""
        return self.first_reader(name) if self.n_readers[name] == 1 else None

    def replace_value(self, name: str, other: str) -> None:
        """Lets every reader of a value read another."""
        for node in self.proto.node:
            for place, read in enumerate(node.input):
                if read == name:
                    node.input[place] = other

    def first_reader(self, name: str) -> onnx.NodeProto | None:
        """The first node in order that reads a value."""
        return next((node for node in self.proto.node if name in node.input), None)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value as the exporter noted it."""
        items = (*self.proto.value_info, *self.proto.input, *self.proto.output)
        dims = next(item.type.tensor_type.shape.dim for item in items if item.name == name)
        return tuple(dim.dim_value for dim in dims)

    def drop_unused(self) -> None:
        """Removes nodes and constants that nothing reads."""
        needed = {item.name for item in self.proto.output}
        for node in reversed(list(self.proto.node)):
            if needed.isdisjoint(node.output):
                self.proto.node.remove(node)
            else:
                needed.update(node.input)
        kept = [item for item in self.proto.initializer if item.name in needed]
        del self.proto.initializer[:]
        self.proto.initializer.extend(kept)
