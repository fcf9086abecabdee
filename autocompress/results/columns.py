"""The columns of a front's table: stable names, each with its unit and meaning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autocompress.results.records import TrialRecord

_SPLITS = ("selection", "test")


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: of the column; `{metric}` and `{split}` stand for the run's own.
        unit: "" for a count or a name, "share" for a figure relative to the uncompressed model or in [0, 1].
        meaning: one line.
    """

    name: str
    unit: str
    meaning: str


COLUMNS = (
    Column("trial", "", "number of the trial; its folder is front/trial_ and this number with four digits"),
    Column("origin", "", "who proposed it"),
    Column("latency_ratio", "share", "latency of the file, timed at the end; the search's where there is no file"),
    Column("latency_spread", "share", "half the distance between the quartiles of the rounds' ratios"),
    Column("latency_ms", "ms", "the same latency in milliseconds"),
    Column("latency_predicted_ms", "ms", "what the latency profile foresaw; empty without one"),
    Column("{metric}_search", "metric", "on selection, of the PyTorch student, as the search saw it"),
    Column("latency_ratio_search", "share", "latency as the search saw it"),
    Column("size_mib", "MiB", "size of the runtime's file"),
    Column("sparse_size_mib", "MiB", "that size with a sparse encoding of zeroed weights; empty where none was zeroed"),
    Column("zip_size_mib", "MiB", "size of the file in a zip archive; empty without a file"),
    Column("memory_mib", "MiB", "what loading and running the file adds to a process; empty without a file"),
    Column("n_params", "", "parameters of the compressed model"),
    Column("n_macs", "", "multiply-accumulates for one sample"),
    Column("feasible", "", "within the limits of the search, as the search saw it"),
    Column("max_abs_diff", "output", "largest difference between the outputs of the file and of PyTorch"),
    Column("agreement", "share", "share of samples on which both have the same largest output"),
    Column("{metric}_{split}", "metric", "of the file; one column for each metric and split"),
)
"""In order; the last stands for as many columns as there are metrics and splits."""


def row(point: TrialRecord, metric: str) -> dict[str, object]:
    """The cells of one point by column name; a figure that is not known is NaN."""
    file, latency = point.file, point.latency if point.file is None else point.file.latency
    cells: dict[str, object] = {
        "trial": point.number,
        "origin": point.origin,
        "latency_ratio": math.nan if latency is None else latency.ratio,
        "latency_spread": math.nan if latency is None else latency.spread,
        "latency_ms": math.nan if latency is None else latency.ms,
        "latency_predicted_ms": math.nan if point.predicted is None else point.predicted.ms,
        f"{metric}_search": point.metrics.get(metric, math.nan),
        "latency_ratio_search": math.nan if point.latency is None else point.latency.ratio,
        "size_mib": point.size_mib if file is None else file.size_mib,
        "sparse_size_mib": _known(point.sparse_size_mib if file is None else file.sparse_size_mib),
        "zip_size_mib": math.nan if file is None else _known(file.zip_size_mib),
        "memory_mib": math.nan if file is None else _known(file.memory_mib),
        "n_params": point.n_params,
        "n_macs": point.n_macs,
        "feasible": point.feasible,
        "max_abs_diff": math.nan if file is None else file.max_abs_diff,
        "agreement": math.nan if file is None else file.agreement,
    }
    metrics = {} if file is None else file.metrics
    cells |= {f"{metric}_{split}": math.nan for split in _SPLITS}
    return cells | {f"{name}_{split}": value for split, values in metrics.items() for name, value in values.items()}


def describe(names: Sequence[str], metric: str) -> dict[str, dict[str, str]]:
    """Unit and meaning of each column of a table, by name."""
    known = {column.name.format(metric=metric, split="{split}"): column for column in COLUMNS[:-1]}
    last = COLUMNS[-1]
    found = {name: known.get(name, last) for name in names}
    return {name: {"unit": column.unit, "meaning": column.meaning} for name, column in found.items()}


def _known(value: float | None) -> float:
    return math.nan if value is None else value
