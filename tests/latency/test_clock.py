"""Paired timing: known ratios come out, on real and on made-up clocks; drift and short disturbances do not matter."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.errors import MeasurementError
from autocompress.latency import clock
from autocompress.latency.clock import time_pair


class MadeUpTime:
    """A clock that only moves when a run, or a pause, says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def run_of(self, seconds: Callable[[float], float]) -> Callable[[], None]:
        """A run that takes `seconds(now)`."""

        def run() -> None:
            self.now += seconds(self.now)

        return run


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> MadeUpTime:
    made_up = MadeUpTime()
    monkeypatch.setattr(clock, "time", made_up)
    return made_up


def busy(seconds: float) -> Callable[[], None]:
    def run() -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    return run


def test_busy_waits_of_one_and_two_milliseconds() -> None:
    timing = time_pair(busy(1e-3), busy(2e-3), n_rounds=7)
    assert timing.ratio == pytest.approx(0.5, rel=0.1)
    assert timing.candidate_ms == pytest.approx(1.0, rel=0.2)
    assert timing.reference_ms == pytest.approx(2.0, rel=0.2)
    assert 0 <= timing.spread < 0.1
    assert timing.n_rounds == 7
    assert timing.n_runs >= 5 * 7
    assert time_pair(busy(2e-3), busy(1e-3), n_rounds=5).ratio == pytest.approx(2.0, rel=0.1)


@given(candidate_us=st.floats(1, 1e5), factor=st.floats(0.05, 20), n_rounds=st.integers(1, 9))
@settings(max_examples=20)
def test_a_made_up_ratio_comes_out_exactly(candidate_us: float, factor: float, n_rounds: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        made_up = MadeUpTime()
        patch.setattr(clock, "time", made_up)
        seconds = candidate_us * 1e-6
        timing = time_pair(made_up.run_of(lambda _: seconds), made_up.run_of(lambda _: seconds * factor), n_rounds)
    assert timing.ratio == pytest.approx(1 / factor, rel=1e-6)
    assert timing.spread == pytest.approx(0, abs=1e-6 / factor)
    assert timing.candidate_ms == pytest.approx(1e3 * seconds, rel=1e-6)
    assert timing.reference_ms == pytest.approx(1e3 * seconds * factor, rel=1e-6)
    assert timing.n_rounds == n_rounds


def test_a_clock_that_drifts_to_half_its_speed_does_not_move_the_ratio(made_up: MadeUpTime) -> None:
    def slowing(seconds: float) -> Callable[[float], float]:
        return lambda now: seconds * (1 + now)

    timing = time_pair(made_up.run_of(slowing(3e-4)), made_up.run_of(slowing(1e-3)))
    assert made_up.now > 0.5, "the drift must have happened"
    assert timing.ratio == pytest.approx(0.3, rel=0.01)
    assert timing.reference_ms > 1.05


def test_a_neighbour_that_is_busy_half_of_the_time_does_not_move_the_ratio(made_up: MadeUpTime) -> None:
    """It slows one of the two more than the other, as it does with integer and float kernels."""

    def run(seconds: float, slower: float) -> Callable[[], None]:
        return made_up.run_of(lambda now: seconds * (slower if int(now * 50) % 2 else 1.0))

    timing = time_pair(run(5e-4, 1.9), run(1e-3, 1.3))
    assert timing.ratio == pytest.approx(0.5, rel=0.01)
    assert timing.reference_ms == pytest.approx(1.0, rel=0.01)


def test_a_round_that_is_disturbed_does_not_move_the_ratio(made_up: MadeUpTime) -> None:
    disturbed = made_up.run_of(lambda now: 5e-3 if 0.3 < now < 0.4 else 1e-3)
    timing = time_pair(disturbed, made_up.run_of(lambda _: 1e-3))
    assert timing.ratio == pytest.approx(1.0, rel=1e-6)


def test_single_disturbed_runs_do_not_move_a_round(made_up: MadeUpTime) -> None:
    n_runs = {"i": 0}

    def seconds(_: float) -> float:
        n_runs["i"] += 1
        return 2e-2 if n_runs["i"] % 10 == 0 else 1e-3

    timing = time_pair(made_up.run_of(seconds), made_up.run_of(lambda _: 1e-3))
    assert timing.ratio == pytest.approx(1.0, rel=1e-6)
    assert timing.spread == pytest.approx(0.0, abs=1e-6)


def test_the_spread_is_half_the_interquartile_range_of_the_rounds(made_up: MadeUpTime) -> None:
    round_of = {"i": 0}
    ratios = [1.0, 1.4, 0.9, 1.1, 1.2, 0.8, 1.3, 1.05]

    def sleep(seconds: float) -> None:
        made_up.now += seconds
        round_of["i"] += 1

    made_up.sleep = sleep  # type: ignore[method-assign]
    candidate = made_up.run_of(lambda _: 1e-3 * ratios[min(round_of["i"], len(ratios) - 1)])
    timing = time_pair(candidate, made_up.run_of(lambda _: 1e-3), n_rounds=len(ratios))
    low, high = np.quantile(ratios, [0.25, 0.75])
    assert timing.spread == pytest.approx((high - low) / 2)


def test_each_timed_run_follows_an_untimed_one_of_the_same_model(made_up: MadeUpTime) -> None:
    order: list[str] = []

    def run(name: str) -> Callable[[], None]:
        def one() -> None:
            made_up.now += 1e-3
            order.append(name)

        return one

    timing = time_pair(run("c"), run("r"), n_rounds=2)
    measured = "".join(order)[-4 * timing.n_runs :]
    assert measured == "ccrr" * timing.n_runs
    assert len(order) - len(measured) >= 100, "fifty milliseconds of each to warm up"


@pytest.mark.parametrize(("seconds", "n_pairs"), [(1e-7, 60), (1e-3, 15), (2.0, 5)])
def test_a_round_takes_about_as_long_whatever_is_timed(made_up: MadeUpTime, seconds: float, n_pairs: int) -> None:
    run = made_up.run_of(lambda _: seconds)
    assert time_pair(run, run, n_rounds=3).n_runs == pytest.approx(3 * n_pairs, abs=3)


def test_no_measurable_time(made_up: MadeUpTime) -> None:
    run = made_up.run_of(lambda now: 1e-3 if now < 0.2 else 0.0)
    with pytest.raises(MeasurementError, match="no measurable time; time a larger batch"):
        time_pair(run, run)
