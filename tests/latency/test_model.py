"""The latency model against a made-up device whose latencies are known, and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autocompress.errors import InputError
from autocompress.latency import LatencyModel
from autocompress.latency.candidate_encoder import Encoder
from autocompress.latency.layer_table import LayerLatencyTable
from autocompress.latency.model import _ridge
from autocompress.latency.plan import draw_candidates
from autocompress.latency.table import Table
from autocompress.space.candidate import Candidate
from tests.latency.nets import HEAD, made_up_pieces, made_up_table, net, true_ratios


def held_out(n: int = 200) -> tuple[list[Candidate], np.ndarray]:
    table = made_up_table()
    candidates = draw_candidates(net()[2], n, seed=99)
    known = {candidate.digest for candidate, _ in table.candidates}
    candidates = [candidate for candidate in candidates if candidate.digest not in known]
    return candidates, true_ratios(table.shape, dict(table.pieces), candidates)


def test_predictions_hold_on_candidates_it_has_not_seen() -> None:
    candidates, truth = held_out()
    model = LatencyModel(made_up_table())
    errors = np.abs(model.ratios(candidates) / truth - 1)
    assert errors.mean() < 0.03
    assert np.abs(model.naive_ratio(candidates) / truth - 1).mean() > 0.1
    np.testing.assert_allclose(model.predict(candidates), 2.0 * model.ratios(candidates))


def test_intervals_contain_what_they_promise() -> None:
    candidates, truth = held_out()
    noise = np.random.default_rng(5).normal(1, 0.05, len(truth))
    model = LatencyModel(made_up_table(150, noise=0.05))
    low, high = model.ratio_interval(candidates).T
    inside = (low <= truth * noise) & (truth * noise <= high)
    assert inside.mean() > 0.9
    narrow_low, narrow_high = model.ratio_interval(candidates, level=0.5).T
    assert 0.3 < ((narrow_low <= truth * noise) & (truth * noise <= narrow_high)).mean() < 0.75
    assert (low <= narrow_low).all() and (narrow_high <= high).all()


@pytest.mark.parametrize("n_candidates", [30, 50])
def test_intervals_hold_with_few_calibration_candidates(n_candidates: int) -> None:
    """30 residuals have no 98 % quantile: the interval must reach beyond the largest of them."""
    shape = net()[3]
    inside: list[bool] = []
    for seed in range(8):
        candidates = draw_candidates(net()[2], n_candidates + 120, seed)
        pieces = made_up_pieces(candidates)
        noise = np.random.default_rng(seed).normal(1, 0.05, len(candidates))
        ratios = true_ratios(shape, pieces, candidates) * noise
        known, new = candidates[:n_candidates], candidates[n_candidates:]
        pairs = tuple(zip(known, ratios[:n_candidates].tolist(), strict=True))
        low, high = LatencyModel(Table(HEAD, 2.0, shape, pieces, pairs)).ratio_interval(new).T
        inside += ((low <= ratios[n_candidates:]) & (ratios[n_candidates:] <= high)).tolist()
    assert np.mean(inside) > 0.94


def test_layers_outside_the_table_widen_the_interval_and_are_counted() -> None:
    table = made_up_table()
    model = LatencyModel(table)
    inside = table.candidates[0][0]
    outside = Candidate(prune_ratio={"blocks.0.conv1": 0.25})
    assert model.n_outside([inside, outside]).tolist() == [0, 2]
    widths = np.diff(model.ratio_interval([inside, outside]), axis=1)[:, 0] / model.ratios([inside, outside])
    assert widths[1] > widths[0]


def test_updates_recalibrate() -> None:
    """A device that has become a quarter slower on integer layers than the profile says."""
    candidates, truth = held_out()
    quantized = [i for i, candidate in enumerate(candidates) if len(candidate.weight_bits) > 3]
    model = LatencyModel(made_up_table())
    rest = quantized[60:]
    before = np.abs(model.ratios([candidates[i] for i in rest]) / (truth[rest] * 1.25) - 1).mean()
    for i in quantized[:60]:
        model.update(candidates[i], truth[i] * 1.25)
    after = np.abs(model.ratios([candidates[i] for i in rest]) / (truth[rest] * 1.25) - 1).mean()
    assert after < 0.7 * before
    with pytest.raises(InputError, match="measured_ratio > 0"):
        model.update(candidates[0], float("nan"))


def test_leaving_one_out_is_leaving_one_out() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.ones((20, 1)), rng.normal(size=(20, 4))], 1)
    _, residuals = _ridge(rows, 0.3)
    for i in range(20):
        others = np.arange(20) != i
        weights, _ = _ridge(rows[others], 0.3)
        assert residuals[i] == pytest.approx(1 - rows[i] @ weights, abs=1e-6)


def test_predictions_do_not_depend_on_the_other_candidates() -> None:
    candidates, _ = held_out(40)
    model = LatencyModel(made_up_table())
    together = model.predict(candidates)
    np.testing.assert_allclose(together, [model.predict([candidate])[0] for candidate in candidates])
    assert model.ratios([Candidate()])[0] == pytest.approx(
        true_ratios(net()[3], dict(made_up_table().pieces), [Candidate()])[0], rel=0.05
    )


def test_save_and_load(tmp_path: Path) -> None:
    candidates, truth = held_out(30)
    model = LatencyModel(made_up_table())
    model.update(candidates[0], float(truth[0]))
    model.save(tmp_path / "device.json")
    again = LatencyModel.load(tmp_path / "device.json")
    np.testing.assert_array_equal(model.interval(candidates), again.interval(candidates))
    assert again.facts() == model.facts()


def test_another_device_or_runtime_is_refused_unless_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.latency.table.runtime_version", lambda _: "1.0")
    monkeypatch.setattr("autocompress.latency.table.describe_machine", lambda: {"cpu": "made up"})
    model = LatencyModel(made_up_table())
    model.require(runtime="onnxruntime", n_threads=1, batch=1)
    for wrong in ({"n_threads": 2}, {"batch": 8}, {"runtime": "openvino"}):
        given = {"runtime": "onnxruntime", "n_threads": 1, "batch": 1, **wrong}
        with pytest.raises(InputError, match=f"of {next(iter(wrong))} .*make a new one, or force"):
            model.require(**given)  # type: ignore[arg-type]
        model.require(**given, force=True)  # type: ignore[arg-type]
    monkeypatch.setattr("autocompress.latency.table.runtime_version", lambda _: "1.1")
    with pytest.raises(InputError, match="version '1.0', not '1.1'"):
        model.require(runtime="onnxruntime", n_threads=1, batch=1)


def test_cost_is_linear_in_the_layers() -> None:
    """Counted in array elements, not in seconds: five for each layer and candidate; features do not grow."""
    n_features = set()
    for n_blocks, n_layers in ((3, 8), (6, 14), (12, 26)):
        shape = net(n_blocks)[3]
        assert len(shape.layers) == n_layers
        states = Encoder(shape).states([Candidate(), Candidate()])
        assert sum(array.size for array in vars(states).values()) == 5 * 2 * n_layers
        sums = LayerLatencyTable(shape, made_up_pieces([], n_blocks), (32, 8)).sums([Candidate()])
        n_features.add(sums.features.shape)
    assert len(n_features) == 1
