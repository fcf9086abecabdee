"""Small layers, their inputs, and what numpy says about them by brute force."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.compression.factorize import factorize_
from autocompress.compression.low_rank.source import LowRankSource
from autocompress.graph import Layer, ModelGraph
from autocompress.graph.layers import KINDS, geometry, weight_shape
from autocompress.space.ranks import Split
from autocompress.task import Inputs

Floats = NDArray[np.float64]


def split(
    model: nn.Module,
    path: str,
    scheme: str,
    ranks: tuple[int, ...],
    batches: list[Inputs],
    aware: bool = True,
) -> nn.Module:
    """A copy of the model with one layer split."""
    student = copy.deepcopy(model)
    layer = layer_at(model, path)
    source = LowRankSource(model, graph_of(layer), batches)
    factorize_(student, layer, Split(scheme, ranks), source, activation_aware=aware)
    return student


def layer_at(model: nn.Module, path: str) -> Layer:
    """As the graph tells it."""
    module = model.get_submodule(path)
    kind = next(name for kind, name in KINDS.values() if isinstance(module, kind))
    return Layer(path, kind, weight_shape(module), 0, 0, **geometry(module))


def graph_of(*layers: Layer) -> ModelGraph:
    """A graph of nothing but layers."""
    return ModelGraph(layers=layers, groups=(), branches=(), frozen=(), n_params=0, n_macs=0)


def least_errors(weight: Floats, rows: Floats) -> Floats:
    """Smallest |rows (W - V)'| over V of each rank 0, 1, ..., full: tails of the whitened singular values."""
    values, vectors = np.linalg.eigh(rows.T @ rows)
    root = vectors * np.sqrt(values.clip(0))
    singular = np.linalg.svd(weight @ root, compute_uv=False)
    return np.array([np.sqrt((singular[rank:] ** 2).sum()) for rank in range(len(singular) + 1)])


def plain_errors(weight: Floats, rows: Floats) -> Floats:
    """|rows (W - V)'| for V of plain weight SVD, of each rank."""
    u, s, vh = np.linalg.svd(weight, full_matrices=False)
    return np.array([np.linalg.norm(rows @ (weight - (u[:, :r] * s[:r]) @ vh[:r]).T) for r in range(len(s) + 1)])


def window_rows(conv: nn.Module, x: Tensor) -> Floats:
    """Windows of a zero-padded convolution, one position after the other: (groups, positions, in / groups × kernel)."""
    kernel, stride, padding, dilation = (getattr(conv, n) for n in ("kernel_size", "stride", "padding", "dilation"))
    spatial = len(kernel)
    image = np.pad(x.double().numpy(), [(0, 0), (0, 0), *((p, p) for p in padding)])
    sizes = [(image.shape[2 + d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(spatial)]
    rows = []
    for sample in image:
        for place in np.ndindex(*sizes):
            taps = [
                [place[d] * stride[d] + tap[d] * dilation[d] for d in range(spatial)] for tap in np.ndindex(*kernel)
            ]
            rows.append([[channel[tuple(tap)] for tap in taps] for channel in sample])
    windows = np.array(rows)  # (positions, channels, taps)
    groups = conv.groups
    return windows.reshape(len(windows), groups, -1).transpose(1, 0, 2)  # type: ignore[no-any-return, arg-type]


def random_inputs(seed: int, *shape: int) -> Tensor:
    """Correlated, not centred, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(shape[1], shape[1], generator=generator) * torch.logspace(0, -2, shape[1])
    x = torch.randn(*shape, generator=generator).movedim(1, -1) @ mixing + torch.rand(shape[1], generator=generator)
    return x.movedim(-1, 1).contiguous()


def error(student: nn.Module, model: nn.Module, x: Tensor) -> float:
    """Norm of the difference of the outputs."""
    with torch.no_grad():
        return float((student(x) - model(x)).double().norm())


def size(model: nn.Module, x: Tensor) -> float:
    """Norm of the output."""
    with torch.no_grad():
        return float(model(x).double().norm())
