"""The precisions that a runtime executes; all others are size-only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autocompress.space.candidate import Precision


@dataclass(frozen=True)
class Capability:
    """How a runtime handles layers of one precision.

    Attributes:
        precision: one of `PRECISIONS`.
        kernels: kind of layer (`Layer.kind`) -> what its kernels compute, such as "int8 × int8 → int32". A kind that
            is missing is size-only: its weights are stored at this width, and read back to float32 when the file is
            loaded. Where it depends on the other layers of the file, the text says so.
    """

    precision: Precision
    kernels: Mapping[str, str] = field(default_factory=dict)


def is_executed(capabilities: tuple[Capability, ...], precision: Precision, kind: str) -> bool:
    """Whether a kernel can compute layers of this kind at this precision; False: size-only in every file."""
    return any(item.precision == precision and kind in item.kernels for item in capabilities)
