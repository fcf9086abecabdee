"""What a search optimises and what bounds it: the metric and its direction, latency, and the limits of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import InputError
from autocompress.results.records import Rung, TrialRecord

Direction = Literal["maximize", "minimize"]
DIRECTIONS: tuple[Direction, ...] = ("maximize", "minimize")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Objectives:
    """The metric in its direction, and the latency ratio, which is minimised; with the limits of a feasible trial.

    This is the one place where the sign of a metric is turned: a `gain` is the metric where it is maximised, and minus
    the metric where it is minimised.

    Attributes:
        metric: name of the metric, on the selection split.
        direction: of the metric.
        reference_ms: latency of the uncompressed model, milliseconds.
        latency_budgets: as ratios to the uncompressed latency, the largest first; empty without a budget.
        metric_limit: worst useful value of the metric: the smallest, or the largest of a minimised one; or None.
        max_size_mib: largest size of the runtime's file, MiB, or None.
        max_memory_mib: most memory that running an exported file may take, MiB, or None.
        further: other metrics of the task that have a direction; they are shown, not optimised.
    """

    metric: str
    direction: Direction = "maximize"
    reference_ms: float = 1.0
    latency_budgets: tuple[float, ...] = ()
    metric_limit: float | None = None
    max_size_mib: float | None = None
    max_memory_mib: float | None = None
    further: Mapping[str, Direction] = field(default_factory=dict)

    @property
    def budget(self) -> float | None:
        """Largest feasible latency ratio, or None."""
        return self.latency_budgets[0] if self.latency_budgets else None

    @property
    def is_maximized(self) -> bool:
        """Whether a larger metric is better."""
        return self.direction == "maximize"

    def gain(self, value: float) -> float:
        """The value with the sign at which larger is better."""
        return value if self.is_maximized else -value

    def value(self, gain: float) -> float:
        """The inverse of `gain`."""
        return gain if self.is_maximized else -gain

    def gain_of(self, record: TrialRecord) -> float:
        """The gain of a record's metric; see `score`."""
        return self.gain(score(record, self.metric))

    def score_of(self, record: TrialRecord) -> float:
        """The metric of a record; see `score`."""
        return score(record, self.metric)

    @property
    def gain_limit(self) -> float | None:
        """The smallest useful gain, or None."""
        return None if self.metric_limit is None else self.gain(self.metric_limit)

    @property
    def reference_point(self) -> tuple[float, float]:
        """The worst corner of the hypervolume as costs: latency ratio 1, metric 0; the limit where 0 is no worst."""
        limit = self.gain_limit
        return 1.0, 0.0 if limit is None or limit > 0 else -limit

    def costs(self, records: Sequence[TrialRecord]) -> Floats:
        """(latency ratio, minus the gain), both minimised; shape (n_records, 2)."""
        return np.array([[ratio(record), -self.gain_of(record)] for record in records]).reshape(-1, 2)

    def best_rung(self, rungs: Sequence[Rung]) -> Rung:
        """The first of the best: training that gains nothing is not kept."""
        return max(rungs, key=lambda rung: self.gain(rung.metrics[self.metric]))

    def excesses(self, record: TrialRecord, value: float | None = None) -> dict[str, float]:
        """How far a record is beyond each limit of a search; 0 or less is within.

        The metric of a trial that was too slow to be fine-tuned says little, so it is not held against it.

        Args:
            record: of a trial; figures that are not known are not beyond a limit.
            value: of the metric, in place of the record's.
        """
        excesses = {}
        if self.budget is not None:
            excesses["latency"] = ratio(record) - self.budget
        if self.gain_limit is not None and excesses.get("latency", 0.0) <= 0:
            excesses["metric"] = self.gain_limit - self.gain(self.score_of(record) if value is None else value)
        if self.max_size_mib is not None and math.isfinite(record.size_mib):
            excesses["size"] = record.size_mib - self.max_size_mib
        return excesses

    def bytes_excess(self, record: TrialRecord) -> float:
        """How many MiB a record is beyond the limits of size and memory, the larger of both."""
        over = [
            value - limit
            for value, limit in ((size_of(record), self.max_size_mib), (memory_of(record), self.max_memory_mib))
            if value is not None and limit is not None
        ]
        return max(over, default=0.0)

    def is_useful(self, record: TrialRecord) -> bool:
        """Whether a record's metric is at least as good as the limit."""
        return self.gain_limit is None or self.gain_of(record) >= self.gain_limit


def default_limit(baseline: float, direction: Direction) -> float | None:
    """The worst useful value of a metric by the uncompressed model's: half of a gain, or twice a cost; None at zero."""
    if baseline == 0:
        return None
    return baseline / 2 if (baseline > 0) == (direction == "maximize") else 2 * baseline


_COSTS = ("loss", "error", "rmse", "mse", "mae", "perplexity", "eer", "wer", "cer")


def metric_directions(given: object, names: Sequence[str]) -> dict[str, Direction]:
    """The direction of each objective; the first one is what the search optimises.

    Args:
        given: a task's `objectives`: a mapping of names to "maximize" or "minimize", or names alone, all maximised;
            without any the first of `names` is maximised.
        names: of the metrics that the task's `evaluate` gives, in its order.

    Raises:
        InputError: neither of these; another direction, a name that `evaluate` does not give, or a name that says it is
            a cost, such as "val_loss", without a direction.
    """
    if not (given is None or isinstance(given, Mapping | list | tuple)):
        raise InputError(
            f'a task\'s `objectives` must be a mapping like {{"loss": "minimize"}} or a list, but are {given!r}'
        )
    wanted: dict[str, object]
    if isinstance(given, Mapping):
        wanted = {str(name): direction for name, direction in given.items()}
    else:
        chosen = [str(name) for name in given] if isinstance(given, list | tuple) else []
        wanted = dict.fromkeys(chosen or list(names[:1]), None)
    found: dict[str, Direction] = {}
    for name, direction in wanted.items():
        if name not in names:
            raise InputError(
                f"the task's objectives must be figures that evaluate gives, but {name!r} is not in {sorted(names)}"
            )
        if direction is None and any(cost in name.lower().replace("-", "_").split("_") for cost in _COSTS):
            raise InputError(
                f"the metric {name!r} is named like a cost, but has no direction; "
                f'say objectives = {{"{name}": "minimize"}} (or "maximize") in the task'
            )
        if direction not in (None, *DIRECTIONS):
            raise InputError(f'an objective is "maximize" or "minimize", but {name!r} is {direction!r}')
        found[name] = "minimize" if direction == "minimize" else "maximize"
    return found


def ratio(record: TrialRecord) -> float:
    """Latency as a share of the uncompressed model's: of the exported file where there is one, else of the search."""
    latency = record.file.latency if record.file is not None else record.latency
    return float("nan") if latency is None else latency.ratio


def score(record: TrialRecord, metric: str) -> float:
    """The metric on the selection split: of the exported file where there is one, else of the student."""
    metrics = record.file.metrics.get("selection", {}) if record.file is not None else record.metrics
    return metrics.get(metric, float("nan"))


def size_of(record: TrialRecord) -> float:
    """Size of the runtime's file, MiB."""
    return record.size_mib if record.file is None else record.file.size_mib


def memory_of(record: TrialRecord) -> float | None:
    """Memory that running the exported file takes, MiB; None where it was not measured."""
    return None if record.file is None else record.file.memory_mib


def budget_ratios(text: str, reference_ms: float) -> tuple[float, ...]:
    """Budgets with commas between them, "0.5x,0.35x", as ratios to the uncompressed latency; the largest first.

    Raises:
        InputError: one of them is no budget.
    """
    return tuple(sorted({budget_ratio(part, reference_ms) for part in text.split(",")}, reverse=True))


def budget_ratio(text: str, reference_ms: float) -> float:
    """A budget as a ratio to the uncompressed latency.

    Args:
        text: "0.5x" (share) or "2.0ms" (milliseconds).
        reference_ms: latency of the uncompressed model, milliseconds.

    Raises:
        InputError: another form, or not positive.
    """
    form = "a latency budget is a positive share like 0.5x or milliseconds like 2.0ms"
    number, unit = text.strip()[:-1], text.strip()[-1:]
    if text.strip().endswith("ms"):
        number, unit = text.strip()[:-2], "ms"
    try:
        value = float(number)
    except ValueError:
        raise InputError(f"{form}, but got {text!r}") from None
    if unit not in ("x", "ms") or not np.isfinite(value) or value <= 0:
        raise InputError(f"{form}, but got {text!r}")
    return value if unit == "x" else value / reference_ms
