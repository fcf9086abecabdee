"""Confidence intervals of a share of right answers."""

from __future__ import annotations

import math

from autocompress.report.wording import is_share
from autocompress.results.records import FileNumbers

Z_95 = 1.959963984540054


def wilson_interval(share: float, n_samples: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a share, such as an accuracy.

    Args:
        share: observed share, in [0, 1].
        n_samples: number of samples behind it, at least 1.
        z: quantile of the normal distribution; the default gives 95 %.

    Returns:
        (low, high), both in [0, 1], with `low <= share <= high`.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    weight = z * z / n_samples
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / n_samples + weight / (4 * n_samples))
    # Rounding may push an end just past 0, 1 or the share itself.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def interval_of(file: FileNumbers, split: str, metric: str) -> tuple[float, float] | None:
    """The 95 % interval of a file's metric on a split; None for a metric that is no share, or without sample counts."""
    value, n_samples = file.metrics.get(split, {}).get(metric), file.n_samples.get(split, 0)
    if value is None or n_samples <= 0 or not is_share(metric) or not 0 <= value <= 1:
        return None
    return wilson_interval(value, n_samples)
