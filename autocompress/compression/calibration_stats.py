"""Statistics of a model and its calibration data, collected on first use; importances and ranks come from them."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compression.low_rank.moments import Moments
from autocompress.compression.low_rank.source import LowRankSource
from autocompress.errors import CompressionError
from autocompress.graph import Coupling, ModelGraph
from autocompress.task import Inputs, Task, call_model

N_GRADIENT_BATCHES = 8


@dataclass(frozen=True)
class Activation:
    """A layer's output for each calibration sample, averaged over all positions; after its norm and ReLU.

    Attributes:
        mean: shape (n_samples, n_outputs).
        magnitude: mean absolute value, shape (n_samples, n_outputs).
    """

    mean: Tensor
    magnitude: Tensor


@dataclass(frozen=True)
class CalibrationStats:
    """A model, its data, and statistics of both; nothing in it depends on a candidate.

    Keep one for all candidates of a model: each statistic is computed once.

    Attributes:
        model: the uncompressed model; not touched.
        graph: of the model.
        calibration: batches of inputs.
        task: gives labelled batches and the loss.
        seed: of the labelled batches and of random choices.
        moments: second moments of what the layers read, where they are known; None collects them from `calibration`.
    """

    model: nn.Module
    graph: ModelGraph
    calibration: Sequence[Inputs] = ()
    task: Task | None = None
    seed: int = 0
    moments: Moments | None = None

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """The parameters that a channel group touches, by path."""
        touched = {coupling.tensor for group in self.graph.groups for coupling in group.couplings}
        named = self.model.named_parameters()
        return {path: weight.detach() for path, weight in named if path in touched}

    @cached_property
    def low_rank(self) -> LowRankSource:
        """Decompositions of the layers' weights under the second moments of their inputs."""
        return LowRankSource(self.model, self.graph, self.calibration, self.moments)

    @cached_property
    def saliency(self) -> Mapping[tuple[str, int], Tensor]:
        """Gradient × weight, summed over all other dimensions: (parameter, dim) -> (n_batches, size of dim).

        Gradients are those of the task's loss in evaluation mode on up to 8 training batches.

        Raises:
            CompressionError: there is no task.
        """
        if self.task is None:
            raise CompressionError("this importance needs the task's batches and loss; pass `task=task`")
        model = copy.deepcopy(self.model).eval().requires_grad_(True)
        parameters = {path: parameter for path, parameter in model.named_parameters() if path in self.weights}
        places = dict.fromkeys(_place(coupling) for group in self.graph.groups for coupling in group.couplings)
        sums: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
        for batch in islice(self.task.train_batches(self.seed), N_GRADIENT_BATCHES):
            loss = self.task.loss(call_model(model, batch[0]), batch)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            products = {
                path: (gradient.double() * self.weights[path]).cpu()
                for path, gradient in zip(parameters, gradients, strict=True)
                if gradient is not None
            }
            for path, dim in places:
                if path in products:
                    sums[path, dim].append(sum_along(products[path], dim))
        return {place: torch.stack(values) for place, values in sums.items()}

    @cached_property
    def activations(self) -> Mapping[str, Activation]:
        """Outputs of the linear, convolution and embedding layers that produce channels, by layer path.

        An output is taken after the batch norm and the ReLU, where these alone read it.

        Raises:
            CompressionError: there are no calibration batches.
        """
        if not self.calibration:
            raise CompressionError("this importance needs calibration batches, but has none; pass `calibration=...`")
        model = copy.deepcopy(self.model).eval()
        units = {layer.path: (layer.norm or layer.path, layer.relu) for layer in self.graph.layers}
        seen: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        modules = dict(model.named_modules(remove_duplicate=False))
        for path in dict.fromkeys(path for group in self.graph.groups for path in group.producers):
            axis = output_axis(modules.get(path))
            if axis is not None:
                end, relu = units.get(path, (path, False))
                modules[end].register_forward_hook(_observer(seen[path], axis, relu))
        with torch.no_grad():
            for inputs in self.calibration:
                call_model(model, inputs)
        return {
            path: Activation(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))
            for path, pairs in seen.items()
            if pairs
        }


def output_axis(module: nn.Module | None) -> int | None:
    """The dimension of the output that counts channels; None for a layer of another kind and for a lone parameter."""
    if isinstance(module, nn.Linear | nn.Embedding):
        return -1
    if isinstance(module, nn.modules.conv._ConvNd) and not (module.transposed and module.groups > 1):
        return 1
    return None


def weight_axis(module: nn.Module) -> int:
    """The dimension of the weight that counts output channels, for a layer that has an `output_axis`."""
    return 1 if isinstance(module, nn.Embedding) or getattr(module, "transposed", False) else 0


def sum_along(tensor: Tensor, dim: int) -> Tensor:
    """Sum over all dimensions but one, shape (size of dim,)."""
    return tensor.movedim(dim, 0).flatten(1).sum(1) if tensor.ndim > 1 else tensor


def _place(coupling: Coupling) -> tuple[str, int]:
    return coupling.tensor, coupling.dim


def _observer(kept: list[tuple[Tensor, Tensor]], axis: int, relu: bool) -> Callable[[nn.Module, Any, Tensor], None]:
    """A hook that keeps the mean and the mean magnitude over positions of each sample, (n_samples, n_outputs)."""

    def observe(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        values = torch.atleast_2d(output.relu() if relu else output).double().movedim(axis, 1)
        positions = values.reshape(*values.shape[:2], -1)
        kept.append((positions.mean(2).cpu(), positions.abs().mean(2).cpu()))

    return observe
