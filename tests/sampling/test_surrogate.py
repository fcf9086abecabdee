"""The surrogate against the closed form of Bayesian linear regression, and its predictions."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.sampling.knapsack import KnobBlock
from autocompress.sampling.surrogate import CostTable, Surrogate

INCREASES = {
    "drop:a": {False: 0.0, True: 0.5},
    "weight_bits:a.conv": {32: 0.0, 8: 0.1},
    "weight_bits:fc": {32: 0.0, 8: -0.2},
}
BLOCKS = (
    KnobBlock(
        "a",
        (
            {"drop:a": False, "weight_bits:a.conv": 32},
            {"drop:a": False, "weight_bits:a.conv": 8},
            {"drop:a": True},
        ),
    ),
    KnobBlock("fc", ({"weight_bits:fc": 32}, {"weight_bits:fc": 8})),
)
TABLE = CostTable.of(BLOCKS, INCREASES)


def test_features_are_sums_by_kind_then_by_block() -> None:
    assert TABLE.kinds == ("drop", "weight_bits")
    np.testing.assert_allclose(TABLE.picked(np.array([1, 1])), [0.0, 0.1, 0.1, 0.0], err_msg="no gain by compressing")
    np.testing.assert_allclose(TABLE.picked(np.array([2, 0])), [0.5, 0.0, 0.5, 0.0])


def test_of_a_dropped_branch_only_the_drop_counts() -> None:
    choices = {"drop:a": True, "weight_bits:a.conv": 8, "weight_bits:fc": 32}
    np.testing.assert_allclose(TABLE.features(choices), TABLE.picked(np.array([2, 0])))


def test_prior_weights_give_the_plain_sensitivities() -> None:
    costs = TABLE.costs(np.array([1.0, 1.0, 0.0, 0.0]))
    np.testing.assert_allclose(costs[0], [0.0, 0.1, 0.5])
    np.testing.assert_allclose(costs[1], [0.0, 0.0])


def fitted(n_trials: int = 40) -> tuple[Surrogate, np.ndarray, np.ndarray]:
    """Trials whose 8-bit choices cost three times, and whose drops a tenth of their sensitivity."""
    rng = np.random.default_rng(0)
    picks = np.column_stack([rng.integers(0, 3, n_trials), rng.integers(0, 2, n_trials)])
    features = np.array([TABLE.picked(pick) for pick in picks])
    scores = 0.9 - 0.1 * features[:, 0] - 3.0 * features[:, 1] + rng.normal(0, 1e-3, n_trials)
    surrogate = Surrogate(TABLE)
    surrogate.fit(features, scores)
    return surrogate, features, scores


def test_it_learns_the_order_that_sensitivities_get_wrong() -> None:
    surrogate, features, _ = fitted()
    rng = np.random.default_rng(1)
    predicted = np.mean([surrogate.scores(features, surrogate.sample(rng)) for _ in range(50)], axis=0)
    quantized, dropped = TABLE.picked(np.array([1, 0])), TABLE.picked(np.array([2, 0]))
    known = {tuple(row): value for row, value in zip(features.tolist(), predicted, strict=True)}
    assert known[tuple(dropped)] > known[tuple(quantized)], "although the drop has the larger sensitivity"


def test_scores_stay_linear_beyond_the_trials() -> None:
    surrogate, _, scores = fitted()
    weights = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    steps = surrogate.scores(np.array([[100.0, 0, 100, 0], [200.0, 0, 200, 0], [300.0, 0, 300, 0]]), weights)
    assert steps[0] < scores.min()
    assert steps[0] - steps[1] == pytest.approx(steps[1] - steps[2])


def test_draws_scatter_less_with_more_trials() -> None:
    def spread(n_trials: int) -> float:
        surrogate, *_ = fitted(n_trials)
        rng = np.random.default_rng(2)
        return float(np.std([surrogate.sample(rng) for _ in range(200)], axis=0).mean())

    assert spread(200) < spread(5)
