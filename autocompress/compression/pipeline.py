"""Applies a candidate or a recipe to a copy of a model: drop, prune, factorize, sparsify, quantize, in this order."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from autocompress.compression.calibration_stats import CalibrationStats
from autocompress.compression.factorize import factorize_
from autocompress.compression.low_rank.matrices import gone_slots
from autocompress.compression.prune import drop_branches_, remove_channels_
from autocompress.compression.quantize import (
    Surroundings,
    WeightGrid,
    calibrate_,
    correct_bias_,
    quantize_,
    snap_biases_,
)
from autocompress.compression.recipe import Recipe, resolve
from autocompress.compression.reconstruct import reconstruct_, reestimate_norms_
from autocompress.compression.sparsify import mark_sparse_, sparsify_
from autocompress.config import QuantizeSettings
from autocompress.graph import ModelGraph, inspect_model
from autocompress.space.candidate import Candidate
from autocompress.task import Inputs, Task, as_inputs


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
        model: trained; it is not touched.
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
    graph = graph if graph is not None else inspect_model(model, as_inputs(example_inputs))
    batches = [as_inputs(inputs) for inputs in calibration]
    calibration_stats = CalibrationStats(model, graph, batches, task)
    recipe = resolve(model, graph, candidate, importance, calibration_stats, activation_aware)
    recipe = replace(recipe, rounds_before_sums=round_before_sums, half_range_weights=half_range_weights)
    return rebuild(model, graph, recipe, batches, reconstruct, calibration_stats, activation_aware, quantize)


def rebuild(
    model: nn.Module,
    graph: ModelGraph,
    recipe: Recipe,
    calibration: Sequence[Inputs] | None = None,
    reconstruct: bool = False,
    calibration_stats: CalibrationStats | None = None,
    activation_aware: bool = True,
    quantize: QuantizeSettings | None = None,
) -> nn.Module:
    """Applies a recipe to a copy of the model.

    Args:
        model: the uncompressed model.
        graph: of the model.
        recipe: what to do.
        calibration: batches from which factors, batch-norm statistics and then 8-bit ranges follow, without training.
            None leaves them unset, for weights that are loaded afterwards.
        reconstruct: refit the layers that lost inputs on the calibration batches.
        calibration_stats: of the model and these batches, reused by all candidates; decompositions come from it.
        activation_aware: see `compress`.
        quantize: how the grids of rounded layers are chosen.

    Raises:
        CompressionError: the recipe does not fit the model, or 8-bit layers have no calibration batches.
    """
    student = copy.deepcopy(model).eval()
    drop_branches_(student, graph, recipe.dropped)
    remove_channels_(student, graph, recipe.removed)
    if reconstruct and calibration:
        reconstruct_(student, model, graph, recipe.removed, calibration)
    if recipe.ranks:
        source = (
            None if calibration is None else (calibration_stats or CalibrationStats(model, graph, calibration)).low_rank
        )
        gone = gone_slots(graph, recipe.removed)
        for path, split in recipe.ranks.items():
            factorize_(student, graph.layer(path), split, source, gone, activation_aware)
    for path, sparsity in recipe.sparsity.items():
        sparsify_(student, path, sparsity)
    mark_sparse_(student, recipe.sparse_layers)
    if calibration and (recipe.dropped or recipe.removed or recipe.ranks or recipe.sparsity):
        reestimate_norms_(student, calibration)  # before any rounding, whose ranges depend on the norms
    return _rounded(student, graph, recipe, calibration, quantize or QuantizeSettings())


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
    if calibration is not None:
        calibrate_(student, calibration, settings.ranges)
        if before is not None:
            norms = {layer.path: layer.norm for layer in graph.layers if layer.norm is not None}
            correct_bias_(student, before, norms, calibration)
        snap_biases_(student)
    return student
