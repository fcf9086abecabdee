"""Predicts a candidate's metric: sensitivities with weights by kind and by block, learned from the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from autocompress.results.objectives import Floats
from autocompress.sampling.knapsack import KnobBlock, Option, OptionIndices
from autocompress.space.search_space import Choice

_KIND_SPREAD = 0.5  # prior standard deviation of a kind's weight, around 1
_BLOCK_SPREAD = 0.5  # of a block's weight, around 0: what it adds to its kinds'
_NOISE = 0.35  # of the transformed metric, which has unit variance
_SETTING = "fine_tune:"
_LEAST_SLOPE = 0.05
_NO_SPREAD = 1e-9
_LARGEST_COST = 10.0  # stands for a choice that cannot be applied at all


@dataclass(frozen=True)
class CostTable:
    """Loss increases as features: sums by kind of knob, and by block.

    Attributes:
        kinds: of the space.
        options: for each block, the features of its options, shape (n_options, n_kinds).
    """

    blocks: tuple[KnobBlock, ...]
    kinds: tuple[str, ...]
    options: tuple[Floats, ...]
    increases: Mapping[str, Mapping[Choice, float]]

    @classmethod
    def of(cls, blocks: Sequence[KnobBlock], increases: Mapping[str, Mapping[Choice, float]]) -> CostTable:
        """From blocks and the loss increase of every choice of every knob."""
        kinds = tuple(
            dict.fromkeys(
                _kind(name, choice)
                for name, choices in increases.items()
                for choice in choices
                if not (name.startswith(_SETTING) and choice is None)
            )
        )
        table = cls(tuple(blocks), kinds, (), increases)
        options = tuple(np.array([table.by_kind(option) for option in block.options]) for block in blocks)
        return cls(tuple(blocks), kinds, options, increases)

    def by_kind(self, option: Option) -> Floats:
        """Loss increase of a block's choices by kind, shape (n_kinds,); 1 for each setting of the fine-tune."""
        sums = dict.fromkeys(self.kinds, 0.0)
        for name, choice in option.items():
            kind = _kind(name, choice)
            if kind in sums:
                own = 1.0 if _is_setting(kind) else self.increases[name][choice]
                sums[kind] += min(max(0.0, own), _LARGEST_COST)
        return np.array(list(sums.values()))

    def features(self, choices: Mapping[str, Choice]) -> Floats:
        """Of a whole candidate, given by the choice of every knob: kinds, then blocks, shape (n_kinds + n_blocks,)."""
        rows = np.array([self.by_kind(_effective(block, choices)) for block in self.blocks])
        return _sums(rows)

    def picked(self, option_indices: OptionIndices) -> Floats:
        """As `features`, of one option for each block."""
        rows = np.array([options[pick] for options, pick in zip(self.options, option_indices, strict=True)])
        return _sums(rows)

    def costs(self, weights: Floats) -> list[Floats]:
        """Cost of each option of each block under the weights of the features.

        Compressing never gains anything; a setting of the fine-tune may.
        """
        n = len(self.kinds)
        costs = [options @ weights[:n] + options.sum(axis=1) * weights[n + i] for i, options in enumerate(self.options)]
        return [
            cost if any(map(_is_setting, block.options[0])) else np.maximum(0.0, cost)
            for block, cost in zip(self.blocks, costs, strict=True)
        ]


def _kind(name: str, choice: Choice) -> str:
    """The group that shares a weight: the kind of a knob, or a single choice of a fine-tune setting."""
    return f"{name}={choice}" if name.startswith(_SETTING) else name.partition(":")[0]


def _is_setting(name: str) -> bool:
    return name.startswith(_SETTING)


def _effective(block: KnobBlock, choices: Mapping[str, Choice]) -> Option:
    """A block's part of the choices; of a dropped branch only the drop."""
    drop = f"drop:{block.name}"
    if choices.get(drop):
        return {drop: True}
    return {name: choices[name] for name in block.options[0] if name in choices}


class Surrogate:
    """Loss = sum of sensitivities x weights, the weights by Bayesian linear regression on the trials' metrics.

    A weight for each kind of knob, and one for each block on top of it, have priors around the plain sum; what is
    regressed is the metric's rank as a normal quantile, so that neither its scale nor outliers matter.

    Args:
        table: of the space.
    """

    def __init__(self, table: CostTable) -> None:
        self.table = table
        n_kinds, n_blocks = len(table.kinds), len(table.blocks)
        kinds = [0.0 if _is_setting(kind) else 1.0 for kind in table.kinds]  # a setting may help or hurt
        self._prior = np.r_[kinds, np.zeros(n_blocks)]
        self._spread = np.r_[np.full(n_kinds, _KIND_SPREAD), np.full(n_blocks, _BLOCK_SPREAD)]
        self._scores = np.array([])

    def fit(self, features: Floats, scores: Floats) -> None:
        """Learns from all trials.

        Args:
            features: shape (n_trials, n_features).
            scores: the metric, to be maximised, shape (n_trials,).
        """
        order = rankdata(scores)
        losses = -ndtri((order - 0.5) / len(order))
        sums = features @ self._prior
        # the plain sum sets the scale on which the weights are 1 and the transformed loss has unit variance
        varied = min(np.std(sums), np.std(losses)) > _NO_SPREAD
        self._unit = max(_LEAST_SLOPE, float(np.corrcoef(sums, losses)[0, 1])) / np.std(sums) if varied else 1.0
        rows = np.column_stack([features * self._unit, np.ones(len(losses))]) / _NOISE
        spread, prior = np.r_[self._spread, 10.0], np.r_[self._prior, -float(sums.mean()) * self._unit]
        precision = rows.T @ rows + np.diag(1 / spread**2)
        self._factor = np.linalg.cholesky(precision)
        self._mean = np.linalg.solve(precision, rows.T @ (losses / _NOISE) + prior / spread**2)
        by_loss = np.argsort(losses, kind="stable")
        self._losses, self._scores = losses[by_loss], scores[by_loss]

    def sample(self, rng: np.random.Generator) -> Floats:
        """Weights drawn from the posterior, the intercept last, shape (n_features + 1,)."""
        noise = rng.standard_normal(len(self._mean))
        return self._mean + np.linalg.solve(self._factor.T, noise)

    def scores(self, features: Floats, weights: Floats) -> Floats:
        """The metric that these weights predict, shape (n,); linear beyond the best and the worst seen."""
        losses = features @ (weights[:-1] * self._unit) + weights[-1]
        inside = np.interp(losses, self._losses, self._scores)
        span = float(self._scores[0] - self._scores[-1]) / max(float(self._losses[-1] - self._losses[0]), 1e-9)
        beyond = np.minimum(losses - self._losses[0], 0) + np.maximum(losses - self._losses[-1], 0)
        predicted: Floats = inside - span * beyond
        return predicted


def _sums(rows: Floats) -> Floats:
    """Of the blocks' losses by kind, shape (n_blocks, n_kinds): totals by kind, then by block."""
    return np.concatenate([rows.sum(axis=0), rows.sum(axis=1)])
