"""The latency model without a profile: what it assumes, and that it follows the measurements of the run."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.errors import InputError
from autocompress.graph import inspect_model
from autocompress.latency.online_predictor import LaunchLatencyModel
from autocompress.space.candidate import Candidate
from autocompress.tasks.voice_lstm import SpokenDigitNet, VoiceLstmTask
from tests.shared.tasks import images, tiny_space, trained_model

GRAPH = inspect_model(trained_model(), (images(1, 0)[0],))
SPACE = tiny_space()
ALL_BITS = SPACE.uniform(weight_bits=8)


def predicted(model: LaunchLatencyModel, *candidates: Candidate) -> list[float]:
    return [float(value) for value in model.ratios(candidates)]


def test_the_uncompressed_model_has_ratio_one() -> None:
    assert predicted(LaunchLatencyModel(GRAPH), Candidate()) == pytest.approx([1.0])


def test_before_any_measurement_the_order_is_plausible() -> None:
    model = LaunchLatencyModel(GRAPH)
    one_layer = Candidate(weight_bits={"conv2": 8})
    whole, pruned, integer, border = predicted(model, Candidate(), SPACE.uniform(prune_ratio=0.5), ALL_BITS, one_layer)
    assert integer < whole and pruned < whole
    assert border > integer, "a single 8-bit layer pays for two borders"
    assert predicted(model, Candidate(rank_ratio={"conv2": 0.5}))[0] > 0


def test_it_follows_the_measurements_of_the_run() -> None:
    def truth(candidate: Candidate) -> float:
        """8 bits gain nothing here, pruned channels do."""
        return 1 - 0.3 * len(candidate.prune_ratio) / 2 + 0.02 * len(candidate.rank_ratio)

    seen = [SPACE.sample(seed) for seed in range(30)]
    unseen = [SPACE.sample(seed) for seed in range(100, 140)]
    model = LaunchLatencyModel(GRAPH)
    before = np.abs(model.ratios(unseen) - [truth(candidate) for candidate in unseen]).mean()
    for candidate in seen:
        model.update(candidate, truth(candidate))
    after = np.abs(model.ratios(unseen) - [truth(candidate) for candidate in unseen]).mean()
    assert after < before / 3
    assert after < 0.06


def test_intervals_hold_the_prediction_and_narrow_with_a_good_fit() -> None:
    model = LaunchLatencyModel(GRAPH)
    low, high = model.ratio_interval([ALL_BITS])[0]
    assert low < predicted(model, ALL_BITS)[0] < high
    for seed in range(20):
        model.update(SPACE.sample(seed), predicted(model, SPACE.sample(seed))[0])
    narrow_low, narrow_high = model.ratio_interval([ALL_BITS])[0]
    assert narrow_high - narrow_low < (high - low) / 2


def test_equal_candidates_have_equal_predictions_alone_and_together() -> None:
    model = LaunchLatencyModel(GRAPH)
    candidates = [SPACE.sample(seed) for seed in range(12)]
    assert predicted(model, *candidates) == pytest.approx([predicted(model, item)[0] for item in candidates])


def test_pruned_recurrent_layers_and_ranks_save_time() -> None:
    net = SpokenDigitNet().eval()
    graph = inspect_model(net, VoiceLstmTask().example_inputs())
    group = next(group for group in graph.groups if any("lstm" in path for path in group.producers))
    layer = next(layer for layer in graph.layers if layer.kind == "lstm")
    whole, pruned, split = predicted(
        LaunchLatencyModel(graph),
        Candidate(),
        Candidate(prune_ratio={group.name: 0.5}),
        Candidate(rank_ratio={layer.path: 0.25}),
    )
    assert whole == pytest.approx(1.0)
    assert pruned < 0.95 and split != whole


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="has no 'nothing'"):
        LaunchLatencyModel(GRAPH).ratios([Candidate(weight_bits={"nothing": 8})])
