"""Times of layers that are kept between profiles: which file, at which speed, and that they are not timed again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError
from autocompress.files import read_json
from autocompress.latency import PairedTiming, on_device, plan
from autocompress.latency.layer_profiles import layer_keys
from autocompress.latency.profiling import LayerStore, profile, reused_times
from autocompress.space.candidate import Candidate
from tests.latency.nets import net
from tests.latency.test_profiling import N_CANDIDATES, task

KEY = {"runtime": "onnxruntime", "version": "1", "n_threads": 1, "batch": 1, "device": "a"}


def test_each_device_runtime_version_threads_and_batch_has_its_own_times(tmp_path: Path) -> None:
    LayerStore(KEY, tmp_path).add({"x|1>1 r0 b32": 1.23456789})
    LayerStore(KEY, tmp_path).add({"y|1>1 r0 b32": 2.0})
    assert LayerStore(KEY, tmp_path).times() == {"x|1>1 r0 b32": 1.2346, "y|1>1 r0 b32": 2.0}
    for change in ({"runtime": "openvino"}, {"version": "2"}, {"n_threads": 2}, {"batch": 2}, {"device": "b"}):
        assert LayerStore({**KEY, **change}, tmp_path).times() == {}


def test_a_damaged_file_names_itself_and_the_line(tmp_path: Path) -> None:
    LayerStore(KEY, tmp_path).add({"x|1>1 r0 b32": 1.0})
    file = next(tmp_path.glob("*.json"))
    file.write_text(file.read_text(encoding="utf-8").replace("1.0", "-1.0"), encoding="utf-8")
    with pytest.raises(InputError, match=rf"{file.name}, line \d+: .*positive number, but is -1.0.*or delete it"):
        LayerStore(KEY, tmp_path).times()


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.01, 100), min_size=3),
    st.floats(0.8, 1.25),
    st.integers(1, 3),
)
def test_stored_times_follow_the_speed_of_the_device(then: dict[str, float], speed: float, n_now: int) -> None:
    now = {key: ms * speed for key, ms in list(then.items())[:n_now]}
    expected = {key: ms * speed for key, ms in list(then.items())[n_now:]}
    assert reused_times(then, now) == pytest.approx(expected)
    assert reused_times(then, {}) == {}
    assert reused_times(then, {key: 2 * ms for key, ms in now.items()}) == {}, "another device by far"


def test_a_second_profile_times_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plan, "MAX_EXTRA", 1)
    monkeypatch.setattr(on_device, "open_session", lambda runtime, file, n_threads: file.name)

    def time_pair(run: Any, reference: Any, n_rounds: int) -> PairedTiming:
        ratio = 1.0 if run == reference else 0.2 + (sum(map(ord, run)) % 100) / 200
        return PairedTiming(ratio, 0.001, 2 * ratio, 2.0, n_rounds, 9)

    monkeypatch.setattr(on_device, "time_pair", time_pair)
    _, _, space, shape = net(1)
    first = profile(task(), space, n_candidates=N_CANDIDATES, folder=tmp_path / "first")
    shutil.copytree(
        tmp_path / "first", tmp_path / "second", ignore=shutil.ignore_patterns("measured.json", "known.json")
    )
    again = profile(task(), space, n_candidates=N_CANDIDATES, folder=tmp_path / "second")
    timed = set(read_json(tmp_path / "second" / "plan.json")["pieces"])
    uncompressed = set(layer_keys(shape, [Candidate()])[0])
    assert timed >= uncompressed
    assert not (timed - uncompressed) & set(first.table.pieces), "only the uncompressed model's layers, as a reference"
    for key, ratio in first.table.pieces.items():
        assert again.table.pieces[key] == pytest.approx(ratio, rel=1e-4)
    resumed = profile(task(), space, n_candidates=N_CANDIDATES, folder=tmp_path / "first")
    assert resumed.table.pieces == first.table.pieces, "a resumed profile uses the times that were known at its start"
    afresh = profile(task(), space, n_candidates=N_CANDIDATES, folder=tmp_path / "first", reuse=False)
    assert afresh.table.pieces == first.table.pieces
