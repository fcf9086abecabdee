"""Compares predictions with measurements that took no part in the fit, as figures and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from autocompress.latency.model import LatencyModel
from autocompress.space.candidate import Candidate

_SIDE, _MARGIN = 420, 48
_BUDGETS = np.linspace(0.2, 1.0, 17)


@dataclass(frozen=True)
class Check:
    """Errors of predicted ratios.

    Attributes:
        measured, predicted, naive: ratios to the uncompressed model, shape (n,); naive is the plain sum over layers.
        interval: lower and upper ends, shape (n, 2).
        held_out: "held-out candidates", or "leave-one-out" where the profile's own candidates had to do.
    """

    measured: NDArray[np.float64]
    predicted: NDArray[np.float64]
    naive: NDArray[np.float64]
    interval: NDArray[np.float64]
    held_out: str

    def figures(self) -> dict[str, float]:
        """Shares, except Spearman's rank correlation and the number of candidates."""
        error = np.abs(self.predicted / self.measured - 1)
        low, high = self.interval.T
        promised = [(self.measured <= budget)[high <= budget] for budget in _BUDGETS]
        kept = np.concatenate(promised)
        return {
            "n": float(len(error)),
            "mape": float(error.mean()),
            "within_5": float((error <= 0.05).mean()),
            "within_10": float((error <= 0.1).mean()),
            "spearman": float(spearmanr(self.predicted, self.measured)[0]),
            "naive_mape": float(np.abs(self.naive / self.measured - 1).mean()),
            "in_interval": float(((low <= self.measured) & (self.measured <= high)).mean()),
            "budget_kept": float(kept.mean()) if len(kept) else float("nan"),
        }

    def text(self) -> str:
        """The figures in a few lines."""
        f = self.figures()
        return (
            f"{f['n']:.0f} {self.held_out}: MAPE {f['mape']:.1%} (sum over layers {f['naive_mape']:.1%}), "
            f"{f['within_5']:.0%} within 5 %, {f['within_10']:.0%} within 10 %, Spearman {f['spearman']:.3f}\n"
            f"{f['in_interval']:.0%} inside their interval; "
            f"{f['budget_kept']:.1%} of those predicted within a budget are"
        )

    def svg(self, title: str) -> str:
        """Predicted against measured, with intervals and lines at 10 %."""
        top = float(max(self.measured.max(), self.predicted.max()) * 1.1)

        def place(x: float, y: float) -> tuple[float, float]:
            return _MARGIN + _SIDE * x / top, _MARGIN + _SIDE * (1 - min(y, top) / top)

        marks = []
        for measured, predicted, (low, high) in zip(self.measured, self.predicted, self.interval, strict=True):
            (x, y), (_, y_low), (_, y_high) = place(measured, predicted), place(measured, low), place(measured, high)
            marks.append(f'<path d="M{x:.1f} {y_low:.1f}V{y_high:.1f}" stroke="#9bb8d3"/>')
            marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="#1f4e79"/>')
        lines = []
        for factor, dash in ((1.0, ""), (0.9, "4 3"), (1.1, "4 3")):
            end = min(top, top / factor)
            (x1, y1), (x2, y2) = place(0, 0), place(end, end * factor)
            lines.append(
                f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#888" stroke-dasharray="{dash}" fill="none"/>'
            )
        ticks = [
            f'<text x="{place(t, 0)[0]:.1f}" y="{_MARGIN + _SIDE + 16}" text-anchor="middle">{t:g}</text>'
            f'<text x="{_MARGIN - 6}" y="{place(0, t)[1] + 4:.1f}" text-anchor="end">{t:g}</text>'
            for t in np.arange(0, top, 0.2).round(1).tolist()
        ]
        size = _SIDE + 2 * _MARGIN
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" '
            'font-family="sans-serif" font-size="11">'
            f'<rect width="{size}" height="{size}" fill="#fff"/>'
            f'<rect x="{_MARGIN}" y="{_MARGIN}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#ccc"/>'
            + "".join((*lines, *marks, *ticks))
            + f'<text x="{size / 2}" y="24" text-anchor="middle" font-size="13">{_escaped(title)}</text>'
            f'<text x="{size / 2}" y="{size - 8}" text-anchor="middle">measured, × uncompressed</text>'
            f'<text x="12" y="{size / 2}" text-anchor="middle" transform="rotate(-90 12 {size / 2})">'
            "predicted</text></svg>"
        )


def check_on(model: LatencyModel, candidates: Sequence[Candidate], ratios: Sequence[float]) -> Check:
    """Predictions for candidates that took no part in the fit."""
    return Check(
        np.asarray(ratios, np.float64),
        model.ratios(candidates),
        model.naive_ratio(candidates),
        model.ratio_interval(candidates),
        "held-out candidates",
    )


def check_by_leaving_out(model: LatencyModel) -> Check:
    """Each measured candidate of the profile, predicted by a fit to the others."""
    candidates, measured = zip(*model.measured, strict=True)
    ratios = np.array(measured)
    predicted = ratios * (1 - model.leave_one_out_residuals())
    low, high = model.ratio_interval(candidates).T / model.ratios(candidates)
    interval = np.stack([predicted * low, predicted * high], 1)
    return Check(ratios, predicted, model.naive_ratio(candidates), interval, "candidates, leave-one-out")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
