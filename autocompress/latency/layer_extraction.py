"""Cuts single layers out of an exported file, with the norm, activation and quantizers that go with them."""

from __future__ import annotations

import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from autocompress.runtimes.node_names import module_of

_QUANTIZE = "QuantizeLinear"
_DEQUANTIZE = "DequantizeLinear"


class LayerExtractor:
    """Cuts layers out of one file.

    Args:
        model: an exported file whose nodes are named after their modules.
    """

    def __init__(self, model: ModelProto) -> None:
        self._model = onnx.shape_inference.infer_shapes(model)
        graph = self._model.graph
        self._weights = {item.name: item for item in graph.initializer}
        self._values = {item.name: item for item in (*graph.value_info, *graph.input, *graph.output)}
        self._producer = {name: i for i, node in enumerate(graph.node) for name in node.output}
        self._readers: dict[str, list[int]] = {}
        for i, node in enumerate(graph.node):
            for name in node.input:
                self._readers.setdefault(name, []).append(i)

    def cut(self, path: str, norm: str | None, relu: bool, quantized: bool) -> ModelProto | None:
        """A file of one layer alone.

        Args:
            path: of the layer; what it was split into lies below it.
            norm: path of the batch norm that follows.
            relu: a ReLU follows, or one with a ceiling.
            quantized: it has an integer kernel, which needs a quantizer behind it: its own, or that of its reader.

        Returns:
            None where the nodes of the layer do not read exactly one value that is computed from the model's inputs.
        """
        nodes = self._graph.node
        own = {i for i, node in enumerate(nodes) if _is_of(module_of(node.name), path, norm)}
        if not own:
            return None
        if relu:
            own |= self._next(own, "Relu") or self._next(own, "Clip")
        if quantized and nodes[max(own)].op_type != _DEQUANTIZE:
            own |= self._next(own, _QUANTIZE)
            own |= self._next(own, _DEQUANTIZE)
        own |= self._constants(own)
        own |= self._unnamed_before(own)
        if quantized:
            own |= self._quantizers_before(own)
        made = {name for i in own for name in nodes[i].output}
        read = {name for i in own for name in nodes[i].input if name and name not in made and name not in self._weights}
        end = self._end(own)
        if len(read) != 1 or end is None:
            return None
        begin = next(iter(read))
        if begin not in self._values or end not in self._values:
            return None
        return self._part([nodes[i] for i in sorted(own)], self._values[begin], self._values[end])

    @property
    def _graph(self) -> GraphProto:
        return self._model.graph

    def _next(self, own: set[int], op_type: str) -> set[int]:
        """The first node of this type that reads the last output."""
        end = self._end(own)
        readers = self._readers.get(end, []) if end is not None else []
        return set([i for i in readers if self._graph.node[i].op_type == op_type][:1])

    def _unnamed_before(self, own: set[int]) -> set[int]:
        """Nodes without a name that feed the layer: rewriting an integer layer puts them behind its quantizer."""
        found: set[int] = set()
        waiting = [name for i in own for name in self._graph.node[i].input]
        while waiting:
            i = self._producer.get(waiting.pop())
            if i is not None and i not in own and i not in found and not self._graph.node[i].name:
                found.add(i)
                waiting.extend(self._graph.node[i].input)
        return found

    def _quantizers_before(self, own: set[int]) -> set[int]:
        """A pair of quantizers that the layer shares with others and that is named after the first of these."""
        for name in {name for i in own for name in self._graph.node[i].input}:
            i = self._producer.get(name)
            if i is None or i in own or self._graph.node[i].op_type != _DEQUANTIZE:
                continue
            j = self._producer.get(self._graph.node[i].input[0])
            if j is not None and self._graph.node[j].op_type == _QUANTIZE:
                return {i, j}
        return set()

    def _end(self, own: set[int]) -> str | None:
        """The output of the last node: of a recurrent layer, that of its states."""
        outputs = self._graph.node[max(own)].output
        return outputs[0] if len(outputs) else None

    def _constants(self, own: set[int]) -> set[int]:
        """Nodes outside that feed the layer and follow from weights alone, such as a bias that is dequantized."""
        found: set[int] = set()
        waiting = [name for i in own for name in self._graph.node[i].input]
        while waiting:
            i = self._producer.get(waiting.pop())
            if i is not None and i not in own and i not in found and self._is_constant(i):
                found.add(i)
                waiting.extend(self._graph.node[i].input)
        return found

    def _is_constant(self, i: int) -> bool:
        return all(
            not name or name in self._weights or (name in self._producer and self._is_constant(self._producer[name]))
            for name in self._graph.node[i].input
        )

    def _part(self, nodes: list[NodeProto], begin: ValueInfoProto, end: ValueInfoProto) -> ModelProto:
        used = {name for node in nodes for name in node.input}
        weights = [item for name, item in self._weights.items() if name in used]
        graph = onnx.helper.make_graph(nodes, "layer", [begin], [end], weights)
        part = onnx.helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        part.metadata_props.extend(self._model.metadata_props)
        return part


def _is_of(module: str, path: str, norm: str | None) -> bool:
    return any(owner is not None and _is_below(module, owner) for owner in (path, norm))


def _is_below(module: str, owner: str) -> bool:
    return module == owner or module.startswith(f"{owner}.")
