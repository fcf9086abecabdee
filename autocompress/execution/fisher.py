"""The cheap variant of sensitivities: half the Fisher information times the squared change of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autocompress.batches import n_samples, part_of
from autocompress.compression import CalibrationStats, Recipe, resolve
from autocompress.compression.quantize import rounded
from autocompress.compression.sparsify import magnitude_mask
from autocompress.execution.sensitivity import ChoiceLoss, Sensitivity, single_choices
from autocompress.graph import ModelGraph
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.task import Batch, Task, call_model

UNIT = "estimated loss increase"
_PART = 8  # samples whose gradient is squared together


def fisher_sensitivity(
    space: SearchSpace,
    task: Task,
    model: nn.Module,
    graph: ModelGraph,
    labelled: list[Batch],
    importance: str = "l2",
) -> Sensitivity:
    """Estimates each single choice from one backward pass over a few samples; nothing is compressed or run again.

    0.5 sum F dw^2, F the empirical Fisher information of single weights (LeCun et al. 1989; Theis et al. 2018,
    arXiv:1801.05787), dw what the choice does to them: removed channels and branches become zero, ranks and 8 bits the
    difference to the rounded weight. It is an estimate for small changes, and neither refitting nor new batch-norm
    statistics are seen; measured increases tell more where there is time for them.
    """
    information, baseline = _fisher(model, task, labelled)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    calibration_stats = CalibrationStats(model, graph, [batch[0] for batch in labelled], task)
    choices = []
    for knob, choice, candidate in single_choices(space):
        changes = _changes(weights, graph, candidate, resolve(model, graph, candidate, importance, calibration_stats))
        increase = sum(
            0.5 * float((information[name] * change.double() ** 2).sum())
            for name, change in changes.items()
            if name in information
        )
        choices.append(ChoiceLoss(knob.kind, knob.target, choice, increase if math.isfinite(increase) else math.nan))
    return Sensitivity(baseline, tuple(choices), UNIT)


def _fisher(model: nn.Module, task: Task, labelled: list[Batch]) -> tuple[dict[str, Tensor], float]:
    """Mean squared gradient of a sample's loss by parameter, and the mean loss."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(value, dtype=torch.double) for name, value in parameters.items()}
    total, n_samples, n_parts = 0.0, 0, 0
    for batch in labelled:
        for part, size in _parts(batch):
            loss = task.loss(call_model(model, part[0]), part)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    sums[name] += size * gradient.double() ** 2  # a mean over `size` samples has 1/size of the variance
            total, n_samples, n_parts = total + float(loss.detach()) * size, n_samples + size, n_parts + 1
    return {name: value / n_parts for name, value in sums.items()}, total / n_samples


def _parts(batch: Batch) -> list[tuple[Batch, int]]:
    """The batch in small pieces; whole where its targets are not a tensor with an entry for each sample."""
    inputs, targets = batch
    size = n_samples(inputs)
    if not isinstance(targets, Tensor) or targets.ndim == 0 or targets.shape[0] != size:
        return [(batch, size)]
    stops = [(start, min(start + _PART, size)) for start in range(0, size, _PART)]
    return [((part_of(inputs, start, stop, size), targets[start:stop]), stop - start) for start, stop in stops]


def _changes(
    weights: Mapping[str, Tensor], graph: ModelGraph, candidate: Candidate, recipe: Recipe
) -> dict[str, Tensor]:
    """What the choice adds to each weight that it touches."""
    changes: dict[str, Tensor] = {}
    for group in graph.groups:
        for coupling in group.couplings:
            weight = weights.get(coupling.tensor)
            slots = sorted(group.gone(coupling, recipe.removed.get(group.name, ())))
            if weight is not None and slots:
                change = changes.setdefault(coupling.tensor, torch.zeros_like(weight))
                index = torch.tensor(slots, device=weight.device)
                change.index_copy_(coupling.dim, index, -weight.index_select(coupling.dim, index))
    for branch in graph.branches:
        if branch.name in candidate.drop:
            gone = f"{branch.layers[-1]}.weight"  # nothing comes out of the branch without its last layer
            changes |= {gone: -weights[gone]} if gone in weights else {}
    for path, split in recipe.ranks.items():
        if f"{path}.weight" in weights:
            changes[f"{path}.weight"] = _low_rank(weights[f"{path}.weight"], min(split.ranks))
    for path, bits in recipe.bits.items():
        if f"{path}.weight" in weights:
            changes[f"{path}.weight"] = rounded(weights[f"{path}.weight"], bits) - weights[f"{path}.weight"]
    for path, sparsity in recipe.sparsity.items():
        sparse = weights[f"{path}.weight"]
        changes[f"{path}.weight"] = -sparse * ~magnitude_mask(sparse, sparsity)
    return changes


def _low_rank(weight: Tensor, rank: int) -> Tensor:
    """What is lost beyond this rank of the weight as a matrix, whatever the scheme."""
    u, s, v = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
    lost: Tensor = -(u[:, rank:] * s[rank:]) @ v[rank:]
    return lost.reshape(weight.shape).to(weight.dtype)
