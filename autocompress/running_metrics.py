"""Metrics that see a split batch by batch, so that its outputs need never be in memory together."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.batches import IGNORED
from autocompress.errors import InputError
from autocompress.metrics import class_dim, main_output, predicted_classes

Metric: TypeAlias = Callable[[Any, Any], float]
"""Maps all outputs and all targets of a split to one figure, larger is better."""


@runtime_checkable
class RunningMetric(Protocol):
    """What torchmetrics' metrics are: `update` sees one batch after the other, `compute` gives the figure of all."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Sees a batch."""

    def compute(self) -> Any:
        """The figure, a number or a tensor with one."""


class RunningAccuracy:
    """Share of targets whose class has the largest output, in [0, 1]; targets of -100 are left out."""

    def __init__(self) -> None:
        self._counts: list[Tensor] = []  # right and all of each batch, on its device: looking at them would wait

    def update(self, outputs: Any, targets: Any) -> None:
        """See `RunningMetric`; shapes as in `autocompress.metrics.accuracy`."""
        right = predicted_classes(outputs, targets) == targets
        kept = targets != IGNORED
        hits = right & kept
        self._counts.append(torch.stack([hits.sum(), kept.sum()]))

    def compute(self) -> float:
        """See `RunningMetric`."""
        n_right, n = torch.stack(self._counts).sum(0).cpu().tolist()
        return float(n_right / max(1, n))


class RunningPerplexity:
    """The exponential of the mean negative log-likelihood of the targets that are not -100.

    Outputs are logits (n, n_tokens, n_vocabulary), targets (n, n_tokens); the likelihoods are taken a few thousand rows
    at a time, in float32, so that no second copy of the logits is made.
    """

    _ROWS = 2048

    def __init__(self) -> None:
        self._total, self._n = 0.0, 0

    def update(self, outputs: Any, targets: Any) -> None:
        """See `RunningMetric`."""
        rows, wanted = main_output(outputs).flatten(0, -2), targets.flatten()
        for start in range(0, len(rows), self._ROWS):
            part, of_part = rows[start : start + self._ROWS].float(), wanted[start : start + self._ROWS]
            self._total += float(F.cross_entropy(part, of_part, ignore_index=IGNORED, reduction="sum").double())
        self._n += int((wanted != IGNORED).sum())

    def compute(self) -> float:
        """See `RunningMetric`."""
        return math.exp(min(self._total / max(1, self._n), 700.0))


class RunningMeanIou:
    """Mean over the classes that occur in the targets of intersection over union; targets of -100 are left out.

    Outputs are scores (n, n_classes, ...), targets (n, ...).
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(0, 0, dtype=torch.long)

    def update(self, outputs: Any, targets: Any) -> None:
        """See `RunningMetric`."""
        scores = main_output(outputs)
        n_classes = scores.shape[class_dim(scores, targets) or 1]
        found, wanted = predicted_classes(scores, targets).flatten(), targets.flatten()
        kept = wanted != IGNORED
        pairs = torch.bincount(wanted[kept] * n_classes + found[kept], minlength=n_classes**2)
        counts = pairs.reshape(n_classes, n_classes).cpu()
        self._counts = counts if not self._counts.numel() else self._counts + counts

    def compute(self) -> float:
        """See `RunningMetric`."""
        both, wanted, found = self._counts.diagonal(), self._counts.sum(1), self._counts.sum(0)
        occurs = wanted > 0
        shares = both[occurs].double() / (wanted + found - both)[occurs]
        return float(shares.mean())


RUNNING: dict[str, Callable[[], RunningMetric]] = {
    "accuracy": RunningAccuracy,
    "perplexity": RunningPerplexity,
    "mean_iou": RunningMeanIou,
}
"""Name -> metric that sees a split batch by batch."""
MINIMIZED = {"perplexity"}


@dataclass
class Joined:
    """A metric that is a function of a whole split: outputs and targets are kept, then joined."""

    function: Metric
    outputs: list[Any] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)

    def update(self, outputs: Any, targets: Any) -> None:
        """See `RunningMetric`."""
        self.outputs.append(outputs)
        self.targets.append(targets)

    def compute(self) -> float:
        """See `RunningMetric`."""
        return float(self.function(join(self.outputs), join(self.targets)))


def fresh(metric: str | Metric | RunningMetric, device: torch.device) -> RunningMetric:
    """A metric that has seen nothing, with its tensors on the device.

    Args:
        metric: a name in `RUNNING`, a function of all outputs and targets, or a `RunningMetric`, which stays as it is.
        device: of the outputs.
    """
    if isinstance(metric, str):
        return RUNNING[metric]()
    if not isinstance(metric, RunningMetric):
        return Joined(metric)
    copied = copy.deepcopy(metric)
    if callable(getattr(copied, "reset", None)):
        copied.reset()  # type: ignore[attr-defined]
    return copied.to(device) if callable(getattr(copied, "to", None)) else copied  # type: ignore[attr-defined]


def name_of(metric: str | Metric | RunningMetric) -> str:
    """The name under which the figure is reported."""
    if isinstance(metric, str):
        return metric
    if isinstance(metric, RunningMetric):
        return type(metric).__name__
    return str(getattr(metric, "__name__", "metric"))


def direction_of(metric: str | Metric | RunningMetric) -> str | None:
    """Which way the figure goes where the metric says so (torchmetrics' `higher_is_better`), else None."""
    if isinstance(metric, str):
        return "minimize" if metric in MINIMIZED else None
    higher = getattr(metric, "higher_is_better", None)
    return None if higher is None else "maximize" if higher else "minimize"


def join(parts: list[Any]) -> Any:
    """Values of all batches, joined along the first dimension of their tensors.

    Raises:
        InputError: they are neither tensors nor containers of tensors, or tensors of different sizes.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        try:
            return torch.cat(parts)
        except RuntimeError as error:
            raise InputError(
                "a metric that is a function of a whole split needs batches of equal shapes but for the first "
                f"dimension, but: {error}; give `metric` an object with `update` and `compute`"
            ) from error
    if isinstance(first, Mapping):
        return {key: join([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        return tuple(join(list(items)) for items in zip(*parts, strict=True))
    raise InputError(
        f"outputs and targets must be tensors or dicts or tuples of tensors, but got {type(first).__name__}; give "
        "`metric` an object with `update` and `compute`, or write a class with the methods of `Task`"
    )
