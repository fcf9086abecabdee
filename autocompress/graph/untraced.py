"""The graph of a model that cannot be traced: its layers, seen by forward hooks, and one reason for all the rest."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.graph.layers import KINDS, geometry, is_plain, weight_shape, weight_tensors
from autocompress.graph.model_graph import Frozen, Layer, ModelGraph
from autocompress.graph.trace import ExampleInputs, split_inputs


def untraced_graph(probe: nn.Module, example_inputs: Tensor | ExampleInputs, reason: str) -> ModelGraph:
    """Layers called exactly once in one forward pass; no groups and no branches.

    Raises:
        InputError: the model does not run on its own example inputs.
    """
    outputs = _record(probe, example_inputs, reason)
    args, kwargs = split_inputs(example_inputs)
    first = next((item for item in (*args, *kwargs.values()) if isinstance(item, Tensor) and item.dim()), None)
    batch = max(1, len(first)) if first is not None else 1
    owners: dict[int, int] = defaultdict(int)
    for _, parameter in probe.named_parameters(remove_duplicate=False):
        owners[id(parameter)] += 1
    layers: list[Layer] = []
    frozen = [Frozen("(the whole model)", "channels", reason), Frozen("(the whole model)", "branch", reason)]
    for path, shapes in outputs.items():
        module: Any = probe.get_submodule(path)
        if len(shapes) > 1:
            frozen.append(Frozen(path, "layer", f"it is called {len(shapes)} times"))
        elif not weight_tensors(module):
            frozen.append(Frozen(path, "layer", "its weight is computed"))
        elif any(owners[id(weight)] > 1 for weight in weight_tensors(module).values()):
            frozen.append(Frozen(path, "layer", "its weight is shared with another module"))
        else:
            layers.append(_layer(path, module, shapes[0], batch))
    total = sum(parameter.numel() for parameter in probe.parameters())
    return ModelGraph(tuple(layers), (), (), tuple(frozen), total, sum(layer.n_macs for layer in layers))


def _record(probe: nn.Module, example_inputs: Tensor | ExampleInputs, reason: str) -> dict[str, list[torch.Size]]:
    """Output shapes of each layer of a known kind, by path, in order of the first call."""
    outputs: dict[str, list[torch.Size]] = defaultdict(list)
    paths = {module: path for path, module in probe.named_modules() if _kind(module) is not None}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        outputs[paths[module]].append((output if isinstance(output, Tensor) else output[0]).shape)

    handles = [module.register_forward_hook(note) for module in paths]
    args, kwargs = split_inputs(example_inputs)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            probe(*args, **kwargs)
    except Exception as error:
        raise InputError(
            f"the model must run on its example inputs, but it raises {type(error).__name__}: {error}; "
            f"check their number, shapes and types ({reason})"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _kind(module: nn.Module) -> str | None:
    return next((name for kind, name in KINDS.values() if is_plain(module, kind)), None)


def _layer(path: str, module: nn.Module, output: torch.Size, batch: int) -> Layer:
    return Layer(
        path=path,
        kind=_kind(module) or "",
        weight_shape=weight_shape(module),
        n_params=sum(parameter.numel() for parameter in module.parameters(recurse=False)),
        n_macs=_n_macs(module, output) // batch,
        **geometry(module),
    )


def _n_macs(module: nn.Module, output: torch.Size) -> int:
    if isinstance(module, nn.Embedding):
        return 0
    if isinstance(module, nn.RNNBase):
        return math.prod(output[:-1]) * sum(weight.numel() for weight in weight_tensors(module).values())
    return math.prod(output) * math.prod(weight_shape(module)[1:])
