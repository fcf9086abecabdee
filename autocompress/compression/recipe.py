"""A recipe: the exact compression of a model in integers (removed channels, ranks, bits). It can be replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from autocompress.errors import CompressionError
from autocompress.space.candidate import Precision
from autocompress.space.ranks import Split


@dataclass(frozen=True)
class Recipe:
    """The exact compression of a model, in integers; with the saved weights it gives the compressed model back.

    Attributes:
        dropped: names of the removed residual branches.
        removed: channel group -> indices of the removed channels, ascending.
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
