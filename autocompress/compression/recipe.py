"""A candidate resolved against a model: which channels go, which rank each layer gets; replays to the same model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from autocompress.compression.calibration_stats import CalibrationStats
from autocompress.compression.importance import criterion_named, least_important
from autocompress.compression.low_rank.matrices import gone_slots
from autocompress.compression.low_rank.source import choose_splits
from autocompress.errors import CompressionError
from autocompress.graph import ModelGraph
from autocompress.space.candidate import Candidate, Precision
from autocompress.space.ranks import Split


@dataclass(frozen=True)
class Recipe:
    """What is done to a model, in integers; with the saved weights it gives the compressed model back.

    Attributes:
        dropped: names of the residual branches that go.
        removed: channel group -> indices of the channels that go, ascending.
        ranks: layer path -> how it is split.
        bits: layer path -> precision, see `Candidate.weight_bits`.
        sparsity: layer path -> share of its weight's smallest entries that are zero, or "n:m"; of saved weights, the
            zeros themselves are the mask.
        rounds_before_sums: whether the target runtime rounds what a sum within an all-8-bit block reads.
        half_range_weights: whether int8 weights that meet integer inputs stay within [-63, 63], for kernels that
            saturate.
        kept_dense: layers whose asked rank saves no multiplications after pruning, and so stay one layer.
    """

    dropped: tuple[str, ...] = ()
    removed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranks: Mapping[str, Split] = field(default_factory=dict)
    bits: Mapping[str, Precision] = field(default_factory=dict)
    kept_dense: tuple[str, ...] = ()
    sparsity: Mapping[str, float | str] = field(default_factory=dict)
    rounds_before_sums: bool = True
    half_range_weights: bool = False

    @property
    def sparse_layers(self) -> tuple[str, ...]:
        """Paths in the compressed model of the layers whose zeros a sparse encoding leaves out."""
        sparse = [path for path, split in self.ranks.items() if split.residual is not None and split.residual.share]
        return (*self.sparsity, *(f"{path}.residual" for path in sparse if path not in self.sparsity))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "ranks": {path: split.to_dict() for path, split in self.ranks.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`.

        Raises:
            CompressionError: keys are missing or unknown.
        """
        try:
            values = dict(data)
            values["dropped"] = tuple(values["dropped"])
            values["kept_dense"] = tuple(values["kept_dense"])
            values["ranks"] = {path: Split.from_dict(split) for path, split in values["ranks"].items()}
            values["removed"] = {name: tuple(indices) for name, indices in values["removed"].items()}
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CompressionError(f"a recipe is damaged: {error}") from error


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
