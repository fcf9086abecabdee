"""Importance criteria: one figure per channel of a group, larger is more important.

A criterion is a function of the calibration statistics and a group, in `CRITERIA`. All judge the whole group: each
layer that loses entries with a channel counts.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from autocompress.compression.calibration_stats import CalibrationStats, output_axis, sum_along, weight_axis
from autocompress.errors import CompressionError, InputError
from autocompress.extensions import find_extension
from autocompress.graph import ChannelGroup, Coupling

Criterion: TypeAlias = Callable[[CalibrationStats, ChannelGroup], Tensor]
"""Calibration statistics and group -> importance, shape (n_channels,)."""

_N_BINS = 32


def l2_magnitude(calibration_stats: CalibrationStats, group: ChannelGroup) -> Tensor:
    """Root mean square over the group's weights (Li et al. 2017, arXiv:1608.08710, over all coupled layers)."""
    return _magnitude(calibration_stats, group, power=2).sqrt()


def l1_magnitude(calibration_stats: CalibrationStats, group: ChannelGroup) -> Tensor:
    """Mean absolute value over the group's weights."""
    return _magnitude(calibration_stats, group, power=1)


def geometric_median(calibration_stats: CalibrationStats, group: ChannelGroup) -> Tensor:
    """Sum of a channel's distances to the group's other channels (He et al. 2019, arXiv:1811.00250).

    Least near the geometric median: a channel that others can replace is removed, be it large or small.
    """
    distances = []
    for coupling, weight in _matrices(calibration_stats, group):
        rows = weight.movedim(coupling.dim, 0)[torch.tensor(coupling.slots)].flatten(1)
        distances.append(torch.cdist(rows, rows).sum(1))
    return _equal_say(group, distances)


def norm_scale(calibration_stats: CalibrationStats, group: ChannelGroup) -> Tensor:
    """Magnitude of the group's batch-norm factors (network slimming, Liu et al. 2017, arXiv:1708.06519).

    A group without batch norm, or whose norms have no factors, is judged by `l2_magnitude`.
    """
    scales = []
    for coupling in group.couplings:
        holder, _, name = coupling.tensor.rpartition(".")
        if name == "weight" and isinstance(calibration_stats.model.get_submodule(holder), _BatchNorm):
            scales.append(_by_channel(calibration_stats.weights[coupling.tensor].double().abs().cpu(), coupling))
    return _equal_say(group, scales) if scales else l2_magnitude(calibration_stats, group)


def taylor(calibration_stats: CalibrationStats, group: ChannelGroup) -> Tensor:
    """Squared first-order change of the loss when all of a channel's weights become zero, averaged over batches.

    (sum over the group of gradient × weight)^2, Molchanov et al. 2019, arXiv:1906.10771, equation 8.
    """
    change = torch.zeros(1, group.n_channels, dtype=torch.float64)
    for coupling in group.couplings:
        saliency = calibration_stats.saliency.get((coupling.tensor, coupling.dim))
        if saliency is not None:
            change = change + _by_channel(saliency, coupling)
    return change.square().mean(0)


def mean_activation(calibration_stats: CalibrationStats, group: ChannelGroup) -> Tensor:
    """Mean magnitude of the channel in the producers' outputs on calibration data (compare Molchanov et al. 2017).

    A group that no linear, convolution or embedding layer produces is judged by `l2_magnitude`.
    """
    outputs = _outputs(calibration_stats, group)
    magnitudes = [
        _by_channel(calibration_stats.activations[path].magnitude.mean(0), coupling) for path, coupling in outputs
    ]
    return _equal_say(group, magnitudes) if magnitudes else l2_magnitude(calibration_stats, group)


def activation_entropy(calibration_stats: CalibrationStats, group: ChannelGroup) -> Tensor:
    """Entropy, in nats, of a channel's average output over the calibration samples (Luo & Wu 2017, arXiv:1706.05791).

    Each sample gives one figure, its average over positions; they are counted in 32 bins between the channel's
    extremes. The mean over the producers; a group that no linear, convolution or embedding layer produces is judged
    by `l2_magnitude`.
    """
    outputs = _outputs(calibration_stats, group)
    entropies = []
    for path, coupling in outputs:
        slots = torch.tensor(coupling.slots)
        entropies.append(_entropy(calibration_stats.activations[path].mean[:, slots].mean(2)))
    return torch.stack(entropies).mean(0) if entropies else l2_magnitude(calibration_stats, group)


def chance(calibration_stats: CalibrationStats, group: ChannelGroup) -> Tensor:
    """Random, from the statistics' seed and the group's name: the baseline that a criterion must beat."""
    seed = hashlib.sha256(f"{calibration_stats.seed}:{group.name}".encode()).digest()[:7]
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
    return torch.rand(group.n_channels, generator=generator, dtype=torch.float64)


CRITERIA: dict[str, Criterion] = {
    "l2": l2_magnitude,
    "l1": l1_magnitude,
    "fpgm": geometric_median,
    "bn_scale": norm_scale,
    "taylor": taylor,
    "activation": mean_activation,
    "entropy": activation_entropy,
    "random": chance,
}
"""Name -> criterion; a new one is one function here."""


def criterion_named(name: str) -> Criterion:
    """The criterion of that name in `CRITERIA`, or the function at `package.module:function`.

    Raises:
        InputError: no such criterion; shows the nearest names.
        MissingExtraError: its module is not installed.
    """
    if name in CRITERIA:
        return CRITERIA[name]
    if ":" not in name:
        near = difflib.get_close_matches(name, CRITERIA, n=3) or sorted(CRITERIA)
        raise InputError(f"no importance is called {name!r}; try {', '.join(near)}, or package.module:function")
    criterion: Criterion = find_extension("importance", name, name, CRITERIA)
    if not callable(criterion):
        raise InputError(f"importance {name!r} must be a function, but is a {type(criterion).__name__}")
    return criterion


def least_important(
    calibration_stats: CalibrationStats, group: ChannelGroup, n_removed: int, criterion: Criterion = l2_magnitude
) -> tuple[int, ...]:
    """Indices of the channels to remove, ascending; of equals the later ones; in a size-constrained group the first.

    Raises:
        CompressionError: the criterion did not give one finite figure per channel.
    """
    if group.sizes:
        return tuple(range(n_removed))
    importance = criterion(calibration_stats, group)
    if importance.shape != (group.n_channels,) or not bool(torch.isfinite(importance).all()):
        raise CompressionError(
            f"importance must be {group.n_channels} finite figures for group {group.name!r}, but is {importance}; "
            f"check the model's weights and batches, or choose another of {sorted(CRITERIA)}"
        )
    order = torch.argsort(-importance, stable=True)
    return tuple(sorted(order[group.n_channels - n_removed :].tolist()))


def _matrices(calibration_stats: CalibrationStats, group: ChannelGroup) -> Iterable[tuple[Coupling, Tensor]]:
    """The group's couplings of parameters with two or more dimensions, with the parameter in float64."""
    for coupling in group.couplings:
        weight = _matrix(calibration_stats, coupling)
        if weight is not None:
            yield coupling, weight.double().cpu()


def _matrix(calibration_stats: CalibrationStats, coupling: Coupling) -> Tensor | None:
    """The coupled parameter, if it is one and has two or more dimensions."""
    weight = calibration_stats.weights.get(coupling.tensor)
    return weight if weight is not None and weight.ndim >= 2 else None


def _magnitude(calibration_stats: CalibrationStats, group: ChannelGroup, power: int) -> Tensor:
    sums = [
        _by_channel(sum_along(weight.abs().pow(power), coupling.dim), coupling)
        for coupling, weight in _matrices(calibration_stats, group)
    ]
    return _equal_say(group, sums)


def _outputs(calibration_stats: CalibrationStats, group: ChannelGroup) -> list[tuple[str, Coupling]]:
    """Producers whose outputs were observed, with the coupling whose slots are indices into that output."""
    found = []
    modules = dict(calibration_stats.model.named_modules(remove_duplicate=False))
    for path in group.producers:
        module = modules.get(path)
        if module is None or output_axis(module) is None:
            continue
        axis, own = weight_axis(module), [item for item in group.couplings if item.tensor.startswith(f"{path}.")]
        matrices = (item for item in own if item.dim == axis and _matrix(calibration_stats, item) is not None)
        coupling = next(matrices, None)
        if coupling is not None and path in calibration_stats.activations:
            found.append((path, coupling))
    return found


def _by_channel(values: Tensor, coupling: Coupling) -> Tensor:
    """Sums values (..., n_slots) over the slots of each channel, shape (..., n_channels)."""
    return values[..., torch.tensor(coupling.slots)].sum(-1)


def _equal_say(group: ChannelGroup, figures: Iterable[Tensor]) -> Tensor:
    """Sum over layers of each channel's share in the layer's total, so that every layer weighs the same."""
    total = torch.zeros(group.n_channels, dtype=torch.float64)
    for figure in figures:
        total += figure / figure.sum().clamp(min=1e-30)
    return total


def _entropy(values: Tensor) -> Tensor:
    """Entropy in nats of the histogram of each column, shape (n_samples, n_channels) -> (n_channels,)."""
    low, high = values.min(0).values, values.max(0).values
    width = (high - low).clamp(min=1e-30)
    bins = ((values - low) / width * _N_BINS).long().clamp(max=_N_BINS - 1)
    share = torch.nn.functional.one_hot(bins, _N_BINS).double().mean(0)
    entropy: Tensor = -torch.special.xlogy(share, share).sum(1)
    return entropy
