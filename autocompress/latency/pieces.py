"""Cuts single layers, with the norm and activation that follow them, out of compressed models: what the table times."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.candidate import FULL_BITS, Candidate
from autocompress.compression import rebuild, resolve
from autocompress.compression.quantize import calibrate_, quantize_
from autocompress.graph import Layer, ModelGraph
from autocompress.latency.structure import Encoder, LayerStates, ModelShape
from autocompress.task import Inputs, call_model

_PATIENCE = 200


@dataclass(frozen=True)
class Piece:
    """One layer at one size, rank and precision.

    Attributes:
        key: of the table; equal keys take equal time, in whatever model.
        module: the layer with its norm and activation.
        inputs: random, of the shape that the layer gets.
    """

    key: str
    module: nn.Module
    inputs: Inputs


def describe_model(model: nn.Module, graph: ModelGraph, inputs: Inputs) -> ModelShape:
    """The model as arrays, with the signature of each layer as it runs on these inputs."""
    seen = _layer_inputs(model, graph, inputs)
    return ModelShape.of(graph, {layer.path: _signature(model, layer, seen[layer.path]) for layer in graph.layers})


def piece_key(signature: str, n_out: int, n_in: int, rank: int, bits: int) -> str:
    """`conv2d 3x3 s1 @32x32 norm relu|16>8 r0 b32`."""
    return f"{signature}|{n_in}>{n_out} r{rank} b{bits}"


def pieces_to_cover(shape: ModelShape, candidates: Sequence[Candidate]) -> dict[str, tuple[int, int]]:
    """Key of every distinct layer that occurs in the candidates -> (index of a candidate, index of the layer)."""
    states = Encoder(shape).states(candidates)
    found: dict[str, tuple[int, int]] = {}
    for i in range(len(candidates)):
        for j, key in enumerate(_keys(shape, states, i)):
            if key is not None:
                found.setdefault(key, (i, j))
    return found


def _keys(shape: ModelShape, states: LayerStates, i: int) -> Iterator[str | None]:
    for j, layer in enumerate(shape.layers):
        size = (states.n_out[i, j], states.n_in[i, j], states.rank[i, j], states.bits[i, j])
        yield piece_key(layer.signature, *map(int, size)) if states.alive[i, j] else None


def cut_pieces(
    model: nn.Module, graph: ModelGraph, inputs: Inputs, candidate: Candidate, wanted: Mapping[int, str]
) -> Iterator[Piece]:
    """Layers of the compressed model, each with made-up ranges of its own.

    Args:
        model: the uncompressed model.
        graph: of the model.
        inputs: of the model.
        candidate: what is done to it.
        wanted: index of the layer -> key.
    """
    full = replace(candidate, weight_bits={})
    student = rebuild(model, graph, resolve(model, graph, full), None)
    seen = _layer_inputs(student, graph, inputs)
    for j, key in wanted.items():
        layer = graph.layers[j]
        module = _unit(student, layer)
        bits = candidate.weight_bits.get(layer.path, FULL_BITS)
        fed = (_random_like(seen[layer.path]),)
        if bits < FULL_BITS:
            alone = replace(layer, path="layer", norm="norm" if layer.norm else None, feeds=(), feeds_only_layers=False)
            quantize_(module, [alone], {"layer": bits})
            calibrate_(module, [fed])
        yield Piece(key, module, fed)


class _Unit(nn.Sequential):
    """A layer and what follows it; of a recurrent layer the outputs alone."""

    def forward(self, x: Tensor) -> Tensor:
        for part in self:
            x = part(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


def _unit(student: nn.Module, layer: Layer) -> nn.Module:
    parts = OrderedDict([("layer", copy.deepcopy(student.get_submodule(layer.path)))])
    if layer.norm is not None:
        parts["norm"] = copy.deepcopy(student.get_submodule(layer.norm))
    if layer.relu:
        parts["relu"] = nn.ReLU()
    return _Unit(parts).eval()


def _layer_inputs(model: nn.Module, graph: ModelGraph, inputs: Inputs) -> dict[str, Tensor]:
    """What each layer that the model still has is called with first."""
    seen: dict[str, Tensor] = {}
    handles = []
    modules = dict(model.named_modules())
    for layer in graph.layers:
        if layer.path in modules:

            def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = layer.path) -> None:
                seen.setdefault(path, next(item for item in (*args, *kwargs.values()) if isinstance(item, Tensor)))

            handles.append(modules[layer.path].register_forward_pre_hook(keep, with_kwargs=True))
    try:
        with torch.no_grad():
            call_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _signature(model: nn.Module, layer: Layer, x: Tensor) -> str:
    """Everything but the channels that the time of a layer depends on."""
    module: Any = model.get_submodule(layer.path)
    words = [layer.kind]
    if layer.kind.startswith("conv"):
        words += ["x".join(map(str, module.kernel_size)), f"s{module.stride[0]}"]
        words += [f"g{module.groups}"] if module.groups > 1 else []
        words += [f"@{'x'.join(map(str, (len(x), *x.shape[2:])))}"]
    else:
        words += [f"@{'x'.join(map(str, x.shape if layer.kind == 'embedding' else x.shape[:-1]))}"]
    return " ".join([*words, *(["norm"] if layer.norm else []), *(["relu"] if layer.relu else [])])


def _random_like(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.dtype)
