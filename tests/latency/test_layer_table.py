"""Layers that are not in a table, against a made-up device whose costs are known."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from autocompress.latency.candidate_encoder import LayerShape
from autocompress.latency.layer_table import LayerLatencyRegressor, layer_key, parse_key
from tests.latency.nets import net

LSTM = LayerShape("lstm", "lstm", 256, 40, (), 96 * 4 * 256 * (40 + 256), "lstm @1x96", False, 1, (), (), False, ())


def lstm_seconds(hidden: int, n_in: int, rank: int) -> float:
    """What reads the inputs costs a third of what reads the hidden state; each kernel 5."""
    read = 4 * hidden * n_in if rank == 0 else rank * (n_in + 4 * hidden)
    return 96e-6 * (read + 3 * 4 * hidden * hidden) + 5 * (1 if rank == 0 else 2) + 5


def test_recurrent_layers_follow_their_input_and_hidden_work() -> None:
    """A time by n_in * n_out, as a table of convolutions has it, would be wrong by a factor of two."""
    rng = random.Random(0)
    sizes = {(64 * rng.randint(1, 4), 8 * rng.randint(4, 32)) for _ in range(14)}
    pieces = {layer_key(LSTM, h, i, (None, 8), 32): lstm_seconds(h, i, 0) for h, i in sizes}
    unmeasured = LayerLatencyRegressor([LSTM], pieces)
    for hidden, n_in in ((96, 40), (160, 200), (224, 64)):
        key = layer_key(LSTM, hidden, n_in, (None, 8), 32)
        assert unmeasured.time(key) == pytest.approx(lstm_seconds(hidden, n_in, 0), rel=0.02)


def test_the_narrowest_class_with_enough_members_counts() -> None:
    layer = net(1)[3].layers[1]
    base = {"norm": 1.0, "slow": 10.0}

    def table(factor: float, bits: int, n: int) -> dict[str, float]:
        return {layer_key(layer, 8 * i, 8, (None, 8), bits): factor * i for i in range(1, n + 1)}  # type: ignore[arg-type]

    pieces = {**table(base["norm"], 32, 8), **table(base["slow"], 8, 6)}
    asked = [layer_key(layer, 80, 8, (None, 8), bits) for bits in (32, 8)]
    assert [LayerLatencyRegressor([layer], pieces).time(key) for key in asked] == pytest.approx([10, 100], rel=0.05)
    few = {**table(base["norm"], 32, 8), **table(base["slow"], 8, 2)}
    assert LayerLatencyRegressor([layer], few).time(asked[1]) < 50, "two layers at 8 bits tell less than all of them"
    assert LayerLatencyRegressor([layer], {}).time(asked[0]) == 0
    other = replace(layer, signature="conv2d 9x9")
    assert LayerLatencyRegressor([layer], {layer_key(other, 8, 8, (None, 8), 32): 5.0}).time(asked[0]) == 0


@pytest.mark.parametrize("rank", [None, 0.25, "spatial:0.5", "tucker:0.25", "energy:0.9"])
def test_every_form_of_rank_is_understood(rank: str | float | None) -> None:
    layer = net(1)[3].layers[1]
    key = layer_key(layer, 32, 32, (rank, 8), 32)
    assert parse_key(key)[:3] == (layer.signature, 32, 32)
    assert np.isclose(LayerLatencyRegressor([layer], {key: 3.0}).time(key), 3.0, rtol=0.01)
