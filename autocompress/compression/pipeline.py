"""Makes students: a candidate to a recipe, the recipe to a compressed copy of a model, and the weights to start from.

The order is drop, prune, factorize, sparsify, quantize.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from autocompress.compression.calibration_stats import CalibrationStats
from autocompress.compression.factorize import factorize_
from autocompress.compression.importance import criterion_named, least_important
from autocompress.compression.inherit import scatter_back
from autocompress.compression.low_rank.matrices import gone_slots
from autocompress.compression.low_rank.source import choose_splits
from autocompress.compression.prune import drop_branches_, remove_channels_
from autocompress.compression.quantize import (
    Surroundings,
    WeightGrid,
    calibrate_,
    correct_bias_,
    quantize_,
    snap_biases_,
)
from autocompress.compression.recipe import Recipe
from autocompress.compression.reconstruct import reconstruct_, reestimate_norms_
from autocompress.compression.sparsify import mark_sparse_, sparsify_
from autocompress.config import QuantizeSettings
from autocompress.devices import CPU, device_of, model_on, on_device
from autocompress.errors import CompressionError
from autocompress.graph import ModelGraph, inspect_model
from autocompress.settings_schema import require_kind
from autocompress.space.candidate import Candidate
from autocompress.task import Batch, Inputs, Task, as_inputs, call_model

UNCOMPRESSED = "uncompressed"

Loss = Callable[[Tensor, Batch], Tensor]
"""Outputs and batch -> scalar, smaller is better; as `Task.loss`."""


@dataclass(frozen=True)
class RebuildOptions:
    """How a recipe is applied.

    Attributes:
        reconstruct: refit the layers that lost inputs on the calibration batches.
        activation_aware: split layers by the error of their outputs; else by that of their weights. See `compress`.
        quantize: how the grids of rounded layers are chosen.
    """

    reconstruct: bool = False
    activation_aware: bool = True
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)


def compress(
    model: nn.Module,
    candidate: Candidate,
    example_inputs: Inputs | Tensor,
    calibration: Iterable[Inputs | Tensor] = (),
    *,
    graph: ModelGraph | None = None,
    importance: str = "l2",
    task: Task | None = None,
    reconstruct: bool = True,
    activation_aware: bool = True,
    quantize: QuantizeSettings | None = None,
    round_before_sums: bool = True,
    half_range_weights: bool = True,
) -> nn.Module:
    """Applies a candidate to a copy of the model.

    Args:
        model: trained, on any device, where the student will be too; it is not touched.
        candidate: see `SearchSpace`.
        example_inputs: a tuple of tensors, or a dict of keyword tensors.
        calibration: batches of inputs, for batch-norm statistics and 8-bit ranges; needed where a layer gets 8 bits
            and by the importances "activation" and "entropy".
        graph: of the model, if it was inspected before.
        importance: which channels matter: a name in `CRITERIA`, or `package.module:function`.
        task: gives labelled batches and the loss; needed by the importance "taylor".
        reconstruct: refit the layers that lost inputs, so that they give on the calibration batches what they gave
            before; without such batches nothing is refitted.
        activation_aware: split layers so that their outputs on the calibration batches change least; else, and without
            such batches, so that their weights do (plain singular value decomposition).
        quantize: how the grids of rounded layers are chosen.
        round_before_sums: False for a runtime (OpenVINO) that does not round what sums within all-8-bit blocks read.
        half_range_weights: keep int8 weights of layers that read integers within [-63, 63], so that the file is right
            on every CPU; False, one bit finer, is for kernels that do not saturate (`autocompress.runtimes.saturates`).

    Returns:
        A plain module in evaluation mode that trains, saves, copies and exports as the model does.

    Raises:
        InputError: no such importance; shows near names.
        CompressionError: the candidate does not fit the model, or the data that it or the importance needs is missing.
    """
    require_kind("model", model, "an nn.Module", nn.Module)
    require_kind("candidate", candidate, "a Candidate", Candidate)
    if graph is None:
        graph = inspect_model(model_on(model, CPU), as_inputs(on_device(example_inputs, CPU)))
    batches = [on_device(as_inputs(inputs), device_of(model)) for inputs in calibration]
    calibration_stats = CalibrationStats(model, graph, batches, task)
    recipe = resolve(model, graph, candidate, importance, calibration_stats, activation_aware)
    recipe = replace(recipe, rounds_before_sums=round_before_sums, half_range_weights=half_range_weights)
    options = RebuildOptions(reconstruct, activation_aware, quantize or QuantizeSettings())
    return rebuild(model, graph, recipe, batches, options, calibration_stats)


def resolve(
    model: nn.Module,
    graph: ModelGraph,
    candidate: Candidate,
    importance: str = "l2",
    calibration_stats: CalibrationStats | None = None,
    activation_aware: bool = True,
) -> Recipe:
    """Turns ratios into integers: the least important channels, ranks relative to the pruned layer's largest rank.

    Parts that go with a dropped branch are not pruned, factorized, zeroed or quantized.

    Args:
        model: the uncompressed model.
        graph: of the model.
        candidate: what is asked.
        importance: name of the criterion, see `CRITERIA`.
        calibration_stats: of the model, kept from candidate to candidate; None where the weights alone decide.
        activation_aware: whether a rank that is asked for by energy keeps that of the output on the calibration data,
            or, as it does without such data, that of the weight.

    Raises:
        InputError: no such criterion.
        CompressionError: the candidate names something that the model does not have, or the criterion lacks its data.
    """
    _check_names(graph, candidate)
    criterion = criterion_named(importance)
    calibration_stats = calibration_stats if calibration_stats is not None else CalibrationStats(model, graph)
    gone = {path for branch in graph.branches if branch.name in candidate.drop for path in branch.layers}
    removed = {}
    for group in graph.groups:
        n_removed = group.nearest(round(candidate.prune_ratio.get(group.name, 0.0) * group.n_channels))
        if n_removed and not gone.issuperset(group.producers):
            removed[group.name] = least_important(calibration_stats, group, n_removed, criterion)
    gone_tensors = gone_slots(graph, removed)
    ranks, kept_dense = choose_splits(calibration_stats.low_rank, candidate, gone_tensors, gone, activation_aware)
    bits = {path: width for path, width in candidate.weight_bits.items() if path not in gone}
    sparsity = {path: level for path, level in candidate.sparsity.items() if path not in gone}
    return Recipe(tuple(sorted(candidate.drop)), removed, ranks, bits, kept_dense, sparsity)


def _check_names(graph: ModelGraph, candidate: Candidate) -> None:
    groups = {group.name for group in graph.groups}
    layers = {layer.path for layer in graph.layers}
    branches = {branch.name for branch in graph.branches}
    for kind, asked, known in (
        ("prune_ratio", set(candidate.prune_ratio), groups),
        ("drop", set(candidate.drop), branches),
        ("rank_ratio", set(candidate.rank_ratio), layers),
        ("weight_bits", set(candidate.weight_bits), layers),
        ("sparsity", set(candidate.sparsity), layers),
    ):
        unknown = sorted(asked - known)
        if unknown:
            raise CompressionError(
                f"{kind} must name parts of the model, but it has no {unknown[0]!r} that can take it; "
                f"`inspect_model` lists what there is and what is frozen"
            )


def rebuild(
    model: nn.Module,
    graph: ModelGraph,
    recipe: Recipe,
    calibration: Sequence[Inputs] | None = None,
    options: RebuildOptions = RebuildOptions(),
    calibration_stats: CalibrationStats | None = None,
) -> nn.Module:
    """Applies a recipe to a copy of the model.

    Args:
        model: the uncompressed model.
        graph: of the model.
        recipe: the compression.
        calibration: batches from which factors, batch-norm statistics and then 8-bit ranges follow, without training.
            None leaves them unset, for weights that are loaded afterwards.
        options: how it is applied.
        calibration_stats: of the model and these batches, reused by all candidates; decompositions come from it.

    Raises:
        CompressionError: the recipe does not fit the model, or 8-bit layers have no calibration batches.
    """
    student = copy.deepcopy(model).eval()
    drop_branches_(student, graph, recipe.dropped)
    remove_channels_(student, graph, recipe.removed)
    if options.reconstruct and calibration:
        reconstruct_(student, model, graph, recipe.removed, calibration)
    if recipe.ranks:
        source = (
            None if calibration is None else (calibration_stats or CalibrationStats(model, graph, calibration)).low_rank
        )
        gone = gone_slots(graph, recipe.removed)
        for path, split in recipe.ranks.items():
            factorize_(student, graph.layer(path), split, source, gone, options.activation_aware)
    for path, sparsity in recipe.sparsity.items():
        sparsify_(student, path, sparsity)
    mark_sparse_(student, recipe.sparse_layers)
    if calibration and (recipe.dropped or recipe.removed or recipe.ranks or recipe.sparsity):
        reestimate_norms_(student, calibration)  # before any rounding, whose ranges depend on the norms
    return _rounded(student, graph, recipe, calibration, options.quantize)


def _rounded(
    student: nn.Module,
    graph: ModelGraph,
    recipe: Recipe,
    calibration: Sequence[Inputs] | None,
    settings: QuantizeSettings,
) -> nn.Module:
    if not recipe.bits:
        return student
    before = copy.deepcopy(student) if settings.correct_bias and calibration else None
    branches = [branch for branch in graph.branches if branch.name not in recipe.dropped]
    dropped = [branch for branch in graph.branches if branch.name in recipe.dropped]
    around = Surroundings(branches, dropped, graph.ops)
    grid = WeightGrid(settings.weights, recipe.half_range_weights)
    quantize_(student, graph.layers, recipe.bits, around, grid, recipe.rounds_before_sums)
    student.eval()  # the new quantizers too
    if calibration is not None:
        calibrate_(student, calibration, settings.ranges)
        if before is not None:
            norms = {layer.path: layer.norm for layer in graph.layers if layer.norm is not None}
            correct_bias_(student, before, norms, calibration)
        snap_biases_(student)
    return student


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
