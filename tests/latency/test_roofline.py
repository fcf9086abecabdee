"""The estimate of a described device: counts by hand, energy by the published figures, what a search asks of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.cli import main
from autocompress.config import SearchSettings
from autocompress.errors import InputError
from autocompress.latency import Estimate, load_latency_model
from autocompress.latency.hardware_description import Hardware, described_hardware, load_hardware
from autocompress.latency.online_predictor import OnlineLatencyPredictor
from autocompress.space.candidate import Candidate
from tests.latency.nets import INPUTS, net

HEAD = {"task": "net", "n_threads": 1, "batch": 1}


def hardware(**changes: Any) -> Hardware:
    usual = {
        "name": "made up",
        "source": "nowhere",
        "cores": 2,
        "giga_macs": {32: 1.0, 8: 4.0},
        "bandwidth_gb_s": 1.0,
        "cache_mib": 1000.0,
        "cache_bandwidth_gb_s": 1e9,
        "launch_us": 1.0,
        "run_us": 1.0,
    }
    return Hardware(**{**usual, **changes})


def estimate(**changes: Any) -> Estimate:
    return Estimate(hardware(**changes), net(1)[3], HEAD)


def macs(width: int, inner: int) -> float:
    """Stem 3x3 from 3 channels, two 3x3 convolutions, a linear layer; 8 x 8 positions."""
    return 64 * 9 * (3 * width + 2 * width * inner) + 4 * width


def test_arithmetic_bound_latency_is_counted_by_hand() -> None:
    """10^9 multiplications a second, bytes for nothing: microseconds are thousands of them, and launches."""
    model, half = estimate(), Candidate(prune_ratio={"blocks.0.conv1": 0.5})
    n_launches = 4
    expected = [macs(32, 32) * 1e-6 + (1 + n_launches) * 1e-3, macs(32, 16) * 1e-6 + (1 + n_launches) * 1e-3]
    np.testing.assert_allclose(model.totals([Candidate(), half]).ms, expected, rtol=1e-6)
    integer = Candidate(weight_bits={"blocks.0.conv1": 8, "blocks.0.conv2": 8})
    saved = 64 * 9 * 2 * 32 * 32 * 0.75e-6
    assert model.totals([integer]).ms[0] == pytest.approx(expected[0] - saved)
    dropped = Candidate(drop=frozenset({"blocks.0"}))
    assert model.totals([dropped]).ms[0] == pytest.approx((macs(32, 0)) * 1e-6 + 3e-3)
    split = Candidate(rank_ratio={"blocks.0.conv1": 0.25})
    before, after = 64 * 9 * 32 * 32, 64 * (9 * 32 * 8 + 8 * 32)
    assert model.totals([split]).ms[0] == pytest.approx(expected[0] - (before - after) * 1e-6 + 1e-3)


def test_memory_bound_latency_is_bytes_over_bandwidth() -> None:
    model = estimate(giga_macs={32: 1e9}, cache_mib=1e-9)
    weights = 4 * (9 * 3 * 32 + 2 * 9 * 32 * 32 + 32 * 4)
    activations = 4 * (64 * (3 + 32) + 2 * 64 * 64 + 32 + 4)
    assert model.totals([Candidate()]).ms[0] == pytest.approx((weights + activations) * 1e-6 + 5e-3, rel=1e-6)
    assert model.totals([Candidate()]).size_mib[0] == pytest.approx(weights / 2**20)
    assert model.totals([Candidate()]).memory_mib[0] == pytest.approx((weights + 4 * 64 * 64) / 2**20)


def test_energy_is_that_of_the_published_figures() -> None:
    weights = 4 * (9 * 3 * 32 + 2 * 9 * 32 * 32 + 32 * 4)
    moved = weights + 4 * (64 * (3 + 32) + 2 * 64 * 64 + 32 + 4)
    expected_pj = macs(32, 32) * (3.7 + 0.9) + moved * 100 / 8
    assert estimate().totals([Candidate()]).energy_mj[0] == pytest.approx(expected_pj * 1e-9)
    from_memory = macs(32, 32) * 4.6 + moved * 244
    assert estimate(cache_mib=1e-9).totals([Candidate()]).energy_mj[0] == pytest.approx(from_memory * 1e-9)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_less_is_never_slower_or_larger_beyond_its_launches(seed: int) -> None:
    model, space = estimate(launch_us=1e-6), net(1)[2]
    candidate = space.sample(seed)
    totals = model.totals([Candidate(), candidate])
    assert totals.ms[1] <= totals.ms[0] * (1 + 1e-6)
    assert totals.size_mib[1] <= totals.size_mib[0]


def test_measurements_correct_it() -> None:
    """A device on which half of the time does not depend on the candidate."""
    model = estimate()
    space = net(1)[2]
    candidates = [space.sample(i) for i in range(60)]
    truth = 0.5 + 0.5 * model.ratios(candidates)
    before = np.abs(model.ratios(candidates[40:]) / truth[40:] - 1).mean()
    wide = np.diff(model.interval(candidates[40:])).mean()
    for candidate, ratio in zip(candidates[:40], truth[:40], strict=True):
        model.update(candidate, float(ratio))
    assert np.abs(model.ratios(candidates[40:]) / truth[40:] - 1).mean() < 0.3 * before
    assert np.diff(model.interval(candidates[40:])).mean() < wide
    with pytest.raises(InputError, match="measured_ratio > 0"):
        model.update(candidates[0], 0.0)


def test_save_and_load_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    model = estimate()
    model.update(Candidate(prune_ratio={"blocks.0.conv1": 0.5}), 0.7)
    model.save(path)
    again = load_latency_model(path)
    assert isinstance(again, Estimate)
    assert again == model
    assert again.facts()["estimate"] == "made up"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"n_threads": 1', '"n_threads": "two"'), encoding="utf-8")
    with pytest.raises(InputError, match=r"line \d+: `n_threads` must be a whole number"):
        load_latency_model(path)
    path.write_text(text.replace('"cores": 2', '"cores": -2'), encoding="utf-8")
    with pytest.raises(InputError, match="`cores > 0` must hold"):
        load_latency_model(path)


def test_a_search_plans_with_an_estimate_but_does_not_bound_by_it(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    estimate().save(path)
    settings_ = SearchSettings(latency_model=str(path))
    task: Any = SimpleNamespace(example_inputs=lambda: INPUTS)
    latency_predictor = OnlineLatencyPredictor.of(settings_, task, net(1)[1])
    half = Candidate(prune_ratio={"blocks.0.conv1": 0.5})
    assert latency_predictor.ratios([half])[0] < 1
    assert latency_predictor.predicted(half) is None
    assert latency_predictor.screening_ratio(half) < latency_predictor.ratios([half])[0], (
        "the most favourable end while nothing was measured"
    )
    with pytest.raises(InputError, match="of another model"):
        OnlineLatencyPredictor.of(settings_, task, net(2)[1])
    with pytest.raises(InputError, match="for n_threads 1, not 2"):
        OnlineLatencyPredictor.of(SearchSettings(latency_model=str(path), n_threads=2), task, net(1)[1])


@pytest.mark.parametrize("name", described_hardware())
def test_described_devices_are_sound_and_say_their_source(name: str) -> None:
    device = load_hardware(name)
    assert len(device.source) > 80
    assert device.peak(8, 1) >= device.peak(16, 1) >= device.peak(32, 1)
    assert device.peak("4w", 1) == device.peak(32, 1)
    assert device.peak(32, 1000) == device.cores * device.peak(32, 1)


def test_bad_descriptions(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no device is called 'raspberry_pi'; try raspberry_pi_5"):
        load_hardware("raspberry_pi")
    for change, rule in (({"cores": 0}, "`cores > 0`"), ({"giga_macs": {16: 1.0}}, "must have 32")):
        with pytest.raises(InputError, match=rule):
            hardware(**change)
    with pytest.raises(InputError, match="has no key 'colour'"):
        Hardware.from_dict({**hardware().to_dict(), "colour": 1})
    with pytest.raises(InputError, match="must have cores, which it lacks"):
        Hardware.from_dict({key: value for key, value in hardware().to_dict().items() if key != "cores"})


def test_the_command_says_that_it_is_an_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pi.json"
    command = ["profile", "digits", "--space", "digits", "--estimate", "raspberry_pi_5", "-o", str(path)]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "ESTIMATE, not measured" in text and "energy, mJ" in text and "Horowitz 2014" in text
    assert json.loads(path.read_text(encoding="utf-8"))["estimate"]["cores"] == 4
    assert main(["profile", "digits", "--estimate", "toaster"]) == 2
    assert "no device is called 'toaster'" in capsys.readouterr().err
