"""Describes a model's layers for the latency model, and makes compressed models quickly, without data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.compression import rebuild, resolve
from autocompress.compression.quantize import calibrate_
from autocompress.graph import Layer, ModelGraph
from autocompress.latency.candidate_encoder import Encoder, ModelShape
from autocompress.latency.layer_table import layer_key
from autocompress.space.candidate import PRECISIONS, Candidate
from autocompress.task import Inputs, call_model


def describe_model(model: nn.Module, graph: ModelGraph, inputs: Inputs) -> ModelShape:
    """The model as arrays, with the signature of each layer as it runs on these inputs."""
    seen = _layer_inputs(model, graph, inputs)
    return ModelShape.of(graph, {layer.path: _signature(model, layer, seen[layer.path]) for layer in graph.layers})


def layer_keys(shape: ModelShape, candidates: Sequence[Candidate]) -> list[list[str | None]]:
    """For each candidate the key of each layer, None for one that is dropped."""
    encoder = Encoder(shape)
    states = encoder.states(candidates)
    keys: list[list[str | None]] = [[None] * len(shape.layers) for _ in candidates]
    for j, layer in enumerate(shape.layers):
        sizes = np.stack([states.n_out[:, j], states.n_in[:, j], states.rank[:, j], states.bits[:, j]], 1)
        for i in np.flatnonzero(states.alive[:, j]).tolist():
            n_out, n_in, rank, bits = sizes[i].tolist()
            keys[i][j] = layer_key(layer, n_out, n_in, encoder.ranks[rank], PRECISIONS[bits])
    return keys


def covering(candidates: Sequence[list[str | None]], have: set[str], n_most: int) -> list[int]:
    """Indices of candidates whose layers are not known yet, the one with most commonly used new ones first."""
    n_times = Counter(key for keys in candidates for key in keys if key is not None)
    chosen: list[int] = []
    known = set(have)
    for _ in range(n_most):
        gains = [sum(n_times[key] for key in {*keys} - known if key is not None) for keys in candidates]
        best = int(np.argmax(gains))
        if gains[best] == 0:
            break
        chosen.append(best)
        known |= {key for key in candidates[best] if key is not None}
    return chosen


def quick_student(model: nn.Module, graph: ModelGraph, candidate: Candidate, inputs: Inputs) -> nn.Module:
    """A compressed model that is as quick to run as the true one, but made without data.

    Factors are random numbers instead of decompositions, ranges are those of random inputs, and int8 weights are within
    half their range: none of it changes the latency.
    """
    recipe = replace(resolve(model, graph, candidate), half_range_weights=True)
    student = rebuild(model, graph, recipe, None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.dim() > 1 and not bool(parameter.any()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    if candidate.weight_bits:
        student.apply(_refresh_)
        calibrate_(student, [random_inputs(inputs)])
    return student


def _refresh_(module: nn.Module) -> None:
    """Lets a quantized weight's scales follow the weight."""
    module.train(module.training)


def random_inputs(inputs: Inputs) -> Inputs:
    """Normal random numbers of the same shapes; integers, which may be indices, stay."""
    if isinstance(inputs, dict):
        return {name: _random_like(value) for name, value in inputs.items()}
    return tuple(_random_like(value) for value in inputs)


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
    """A text of all that a layer's time depends on, except its channels."""
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
