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
        self.n_readers.update(new.input)

    def substitute(self, node: onnx.NodeProto, new: onnx.NodeProto) -> None:
        """Puts another node with the same outputs in a node's place."""
        place = self._place(node)
        self.proto.node.insert(place, new)
        self.n_readers.subtract(node.input)
        del self.proto.node[place + 1]
        self.producer[new.output[0]] = self.proto.node[place]
        self.n_readers.update(new.input)

    def _place(self, node: onnx.NodeProto) -> int:
        output = node.output[0]
        return next(place for place, other in enumerate(self.proto.node) if other.output[0] == output)

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The node that alone reads a value; None where several do, or it is an output of the graph."""
        return self.first_reader(name) if self.n_readers[name] == 1 else None

    def replace_value(self, name: str, other: str) -> None:
        """Lets every reader of a value read another."""
        for node in self.readers(name):
            self.reread(node, name, other)

    def bypass(self, node: onnx.NodeProto) -> None:
        """Lets the readers of a node's only output read its first input; a node that gives an output stays."""
        if not self.is_output(node.output[0]):
            self.replace_value(node.output[0], node.input[0])

    def add_pair_behind(self, name: str, like: onnx.NodeProto) -> None:
        """Rounds a computed value on the grid of another node; all that read the value read the result."""
        readers = self.readers(name)
        levels, values = f"{name}_levels", f"{name}_rounded"
        module, slash, _ = self.producer[name].name.partition("/")
        start = module + slash if slash else ""  # so that a profile counts the pair to that module
        grid = like.input[1:3]
        rounded = onnx.helper.make_node("QuantizeLinear", [name, *grid], [levels], name=f"{start}{levels}")
        back = onnx.helper.make_node("DequantizeLinear", [levels, *grid], [values], name=f"{start}{values}")
        for node in readers:
            self.reread(node, name, back.output[0])
        after = next(place for place, node in enumerate(self.proto.node) if name in node.output) + 1
        for place, node in enumerate((rounded, back)):
            self.proto.node.insert(after + place, node)
            self.producer[node.output[0]] = self.proto.node[after + place]
            self.n_readers.update(node.input)

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read a value, in order."""
        return [node for node in self.proto.node if name in node.input]

    def move_behind(self, node: onnx.NodeProto, other: onnx.NodeProto) -> None:
        """Moves a node in the order of the file to the place behind another one."""
        moved = onnx.NodeProto()
        moved.CopyFrom(node)
        self.proto.node.insert(self._place(other) + 1, moved)
        del self.proto.node[self._place(node)]  # the first of the two
        for name in moved.output:
            self.producer[name] = self.proto.node[self._place(moved)]

    def is_output(self, name: str) -> bool:
        """Whether a value is an output of the graph."""
        return any(item.name == name for item in self.proto.output)

    def reread(self, node: onnx.NodeProto, name: str, other: str) -> None:
        """Lets a node read another value in place of one."""
        for place, read in enumerate(node.input):
            if read == name:
                node.input[place] = other
                self.n_readers[name] -= 1
                self.n_readers[other] += 1

    def first_reader(self, name: str) -> onnx.NodeProto | None:
        """The first node in order that reads a value."""
        return next((node for node in self.proto.node if name in node.input), None)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value as the exporter noted it; () where it did not."""
        items = (*self.proto.value_info, *self.proto.input, *self.proto.output)
        found = (item.type.tensor_type.shape.dim for item in items if item.name == name)
        return tuple(dim.dim_value for dim in next(found, ()))

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
