"""Which trained weights a candidate starts from: the uncompressed model's, or those of a candidate trained before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from autocompress.compression import RebuildOptions, rebuild
from autocompress.compression.calibration_stats import CalibrationStats
from autocompress.compression.inherit import scatter_back
from autocompress.compression.prune import drop_branches_
from autocompress.compression.recipe import Recipe
from autocompress.graph import ModelGraph
from autocompress.space.candidate import Candidate
from autocompress.task import Batch, Inputs, call_model

UNCOMPRESSED = "uncompressed"

Loss = Callable[[Tensor, Batch], Tensor]
"""Outputs and batch -> scalar, smaller is better; as `Task.loss`."""


@dataclass(frozen=True)
class Parent:
    """Weights that a candidate can start from.

    Attributes:
        name: that is recorded: "uncompressed", or a trial.
        model: of the uncompressed architecture; not touched.
        recipe: of the student whose training it holds; that of the uncompressed model changes nothing.
    """

    name: str
    model: nn.Module
    recipe: Recipe = field(default_factory=Recipe)

    @classmethod
    def trained(cls, name: str, student: nn.Module, recipe: Recipe, base: Parent, graph: ModelGraph) -> Parent:
        """From a trained student, written back into the model that it was made from (see `scatter_back`)."""
        return cls(name, scatter_back(student, base.model, graph, recipe), recipe)


@dataclass(frozen=True)
class Rebuilding:
    """How students are made, the same for all parents; see `rebuild`.

    Attributes:
        graph: of the uncompressed model.
        calibration: batches of inputs.
        options: of `rebuild`; layers that lost inputs are refitted to give what they gave in the parent.
    """

    graph: ModelGraph
    calibration: Sequence[Inputs] = ()
    options: RebuildOptions = RebuildOptions(reconstruct=True)


def student_from(
    parent: Parent, recipe: Recipe, how: Rebuilding, calibration_stats: CalibrationStats | None = None
) -> nn.Module:
    """A candidate's student with a parent's weights.

    Branches that both lack are gone before anything is refitted, so that the refit aims at what the parent gives.

    Args:
        parent: not touched.
        recipe: from `resolve` with the uncompressed model, whatever the parent: one candidate has one structure, and
            a stronger prune ratio takes channels away from a weaker one's.
        how: see `Rebuilding`.
        calibration_stats: of the parent's model, where it is kept; only decompositions need it.
    """
    source = parent.model
    shared = set(parent.recipe.dropped) & set(recipe.dropped)
    if shared:
        source = copy.deepcopy(source)
        drop_branches_(source, how.graph, shared)
    if calibration_stats is None and recipe.ranks:
        calibration_stats = CalibrationStats(parent.model, how.graph, how.calibration)
    return rebuild(source, how.graph, recipe, how.calibration, how.options, calibration_stats).eval()


def best_of(starts: Mapping[str, nn.Module], loss: Loss, batches: Sequence[Batch]) -> str:
    """The name of the student with the smallest mean loss on a few batches; of equals the first.

    A student whose loss is not finite is passed over, unless all are.

    Args:
        starts: students of one candidate by the name of their parent; at least one.
        loss: of outputs and batch.
        batches: held out: ones that the parents' training did not end on.
    """
    return min(starts, key=lambda name: _rank(mean_loss(starts[name], loss, batches)))


def n_different(one: Candidate, other: Candidate) -> float:
    """How far apart two candidates are.

    The sum over channel groups of the difference of prune ratios, plus the number of branches, ranks, precisions and
    sparsities that differ.
    """
    ratios = sum(
        abs(one.prune_ratio.get(name, 0.0) - other.prune_ratio.get(name, 0.0))
        for name in {*one.prune_ratio, *other.prune_ratio}
    )
    n_choices = len(one.drop ^ other.drop)
    for ours, theirs in (
        (one.rank_ratio, other.rank_ratio),
        (one.weight_bits, other.weight_bits),
        (one.sparsity, other.sparsity),
    ):
        n_choices += sum(ours.get(name) != theirs.get(name) for name in {*ours, *theirs})
    return ratios + n_choices


def mean_loss(model: nn.Module, loss: Loss, batches: Sequence[Batch]) -> float:
    """Mean over batches, in evaluation mode."""
    with torch.no_grad():
        values = [float(loss(call_model(model, batch[0]), batch)) for batch in batches]
    return sum(values) / len(values)


def _rank(loss: float) -> float:
    return loss if loss == loss else float("inf")
