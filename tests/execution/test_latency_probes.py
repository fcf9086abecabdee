"""Candidates that are timed before a search plans: which they are, that they teach, and their file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.errors import InputError
from autocompress.execution.latency_probes import (
    LatencyProbe,
    measure_latency_probes,
    probe_candidates,
    read_latency_probes,
    write_latency_probes,
)
from autocompress.graph import inspect_model
from autocompress.latency.online_predictor import LaunchLatencyModel, OnlineLatencyPredictor
from autocompress.latency.target_device import LocalDevice
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Knob, SearchSpace
from tests.execution.test_trial import context_of
from tests.shared.tasks import images, tiny_space, trained_model

SPACE = tiny_space()
PROBES = [LatencyProbe(Candidate({"conv1": 0.5}), 0.8), LatencyProbe(Candidate(weight_bits={"fc": 8}), 1.1)]


def test_probes_are_different_candidates_of_the_space() -> None:
    found = probe_candidates(SPACE)
    assert len({candidate.digest for candidate in found}) == len(found) >= 4
    for candidate in found:
        SPACE.choices_of(candidate)
        assert not candidate.is_baseline
    assert any(candidate.rank_ratio and not candidate.weight_bits for candidate in found)
    drops = SearchSpace(tuple(Knob("drop", name, (False, True)) for name in "abcd"))
    assert [sorted(candidate.drop) for candidate in probe_candidates(drops)] == [["b", "d"]]
    assert probe_candidates(SearchSpace(())) == []


def test_each_is_timed_once_and_none_after_the_time(tmp_path: Path) -> None:
    context = context_of(tmp_path, runtime="onnxruntime")
    device = LocalDevice("onnxruntime", 1)
    counted: list[tuple[int, int]] = []
    found = list(measure_latency_probes(context, SPACE, device, None, lambda *item: counted.append(item)))
    assert [probe.candidate for probe in found] == probe_candidates(SPACE)
    assert counted[-1] == (len(found), len(found))
    assert all(0.05 < probe.ratio < 20 for probe in found)
    assert list(measure_latency_probes(context, SPACE, device, -1.0)) == []
    lost = replace(context, settings=replace(context.settings, runtime="tests.execution.test_latency_probes:Refuses"))
    assert list(measure_latency_probes(lost, SPACE, device, None)) == []


class Refuses:
    """A runtime that writes nothing."""

    def capabilities(self) -> tuple[()]:
        return ()

    def export(self, *_: object) -> Path:
        raise InputError("no")

    def load(self, *_: object) -> None:
        raise InputError("no")


def test_the_latency_model_learns_from_them() -> None:
    graph = inspect_model(trained_model(), (images(1, 0)[0],))
    candidate = SPACE.uniform(weight_bits=8)
    predictor = OnlineLatencyPredictor(LaunchLatencyModel(graph))
    before = float(predictor.ratios([candidate])[0])
    measured = 2 * before
    predictor.learn_ratio(candidate, measured)
    assert abs(float(predictor.ratios([candidate])[0]) - measured) < abs(before - measured)
    predictor.learn_ratio(candidate, float("nan"))


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "latency_probes.json"
    assert read_latency_probes(path) == []
    write_latency_probes(path, PROBES)
    assert read_latency_probes(path) == PROBES
    for text in ("not json", "{}", '{"probes": [{"ratio": 1}]}'):
        path.write_text(text)
        with pytest.raises(InputError, match="latency_probes"):
            read_latency_probes(path)
