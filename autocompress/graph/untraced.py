"""The graph of a model that cannot be traced: its layers, seen by forward hooks, and one reason for all the rest."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.graph.layers import KINDS, is_plain
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
        elif owners[id(module.weight)] > 1:
            frozen.append(Frozen(path, "layer", "its weight is shared with another module"))
        else:
            layers.append(_layer(path, module, shapes[0], batch))
    total = sum(parameter.numel() for parameter in probe.parameters())
    return ModelGraph(tuple(layers), (), (), tuple(frozen), total, sum(layer.n_macs for layer in layers))


def _record(probe: nn.Module, example_inputs: Tensor | ExampleInputs, reason: str) -> dict[str, list[torch.Size]]:
    """Output shapes of each linear and convolution, by path, in order of the first call."""
    outputs: dict[str, list[torch.Size]] = defaultdict(list)
    kinds = [kind for kind, _ in KINDS.values()]
    paths = {module: path for path, module in probe.named_modules() if any(is_plain(module, kind) for kind in kinds)}
    handles = [
        module.register_forward_hook(lambda module, _, output: outputs[paths[module]].append(output.shape))
        for module in paths
    ]
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


def _layer(path: str, module: Any, output: torch.Size, batch: int) -> Layer:
    weight = tuple(module.weight.shape)
    return Layer(
        path=path,
        kind="linear" if isinstance(module, nn.Linear) else "conv2d",
        weight_shape=weight,
        n_params=sum(parameter.numel() for parameter in module.parameters(recurse=False)),
        n_macs=math.prod(output) * math.prod(weight[1:]) // batch,
    )
