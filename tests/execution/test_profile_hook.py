"""A search with a profile of the device: what is turned away, what is recorded, which profiles are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autocompress.config import SearchSettings
from autocompress.errors import InputError
from autocompress.execution.open_run import open_run
from autocompress.execution.preparation import prepare
from autocompress.latency import LatencyModel
from autocompress.latency.online_predictor import OnlineLatencyPredictor, label_slower_ranks
from autocompress.results.records import Latency, Predicted, TrialRecord
from autocompress.results.run_folder import RunFolder
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.task import SupervisedTask
from tests.latency.nets import INPUTS, made_up_table, net
from tests.shared.tasks import STUB


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("autocompress.latency.table.runtime_version", lambda _: "1.0")
    monkeypatch.setattr("autocompress.latency.table.describe_machine", lambda: {"cpu": "made up"})
    path = tmp_path / "device.json"
    LatencyModel(made_up_table(noise=0.03)).save(path)
    return path


def target(profile: Path, n_blocks: int = 3, **settings: Any) -> Any:
    chosen = SearchSettings(latency_model=str(profile), **settings)
    task = SimpleNamespace(example_inputs=lambda: INPUTS)
    return chosen, task, net(n_blocks)[1]


def test_the_upper_end_decides_and_measurements_recalibrate(profile: Path) -> None:
    latency_predictor = OnlineLatencyPredictor.of(*target(profile))
    model = LatencyModel.load(profile)
    candidate = net()[2].sample(12345)
    assert latency_predictor.screening_ratio(candidate) == pytest.approx(model.ratio_interval([candidate])[0, 1])
    assert latency_predictor.screening_ratio(candidate) > latency_predictor.ratios([candidate])[0]
    before = latency_predictor.ratios([candidate])[0]
    for _ in range(10):
        latency_predictor.learn(
            TrialRecord(1, "complete", "sampler", candidate, latency=Latency(2 * before, 0.01, 1.0, 9))
        )
    assert latency_predictor.ratios([candidate])[0] > 1.3 * before


def test_records_say_what_was_predicted_and_old_ones_still_load(profile: Path) -> None:
    candidate = net()[2].sample(1)
    predicted = OnlineLatencyPredictor.of(*target(profile)).predicted(candidate)
    assert isinstance(predicted, Predicted)
    assert 0 < predicted.low_ms < predicted.ms < predicted.high_ms
    record = TrialRecord(3, "failed", "sampler", candidate, predicted=predicted, size_mib=0.5)
    assert TrialRecord.from_dict(record.to_dict()) == record
    assert TrialRecord.from_dict(record.to_dict()).predicted == predicted
    old = record.to_dict()
    del old["predicted"]
    assert TrialRecord.from_dict(old).predicted is None


def test_another_model_or_runtime_is_refused(profile: Path) -> None:
    with pytest.raises(InputError, match="the profile is of another model"):
        OnlineLatencyPredictor.of(*target(profile, n_blocks=2))
    with pytest.raises(InputError, match="of n_threads 1, not 2"):
        OnlineLatencyPredictor.of(*target(profile, n_threads=2))
    assert (
        OnlineLatencyPredictor.of(*target(profile, n_threads=2, force_latency_model=True)).predicted(Candidate())
        is not None
    )
    assert OnlineLatencyPredictor.of(SearchSettings(), *target(profile)[1:]).predicted(Candidate()) is None


@pytest.mark.usefixtures("brief_clock")
def test_a_search_labels_slow_ranks_and_is_reopened_on_its_grid(
    profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatencyModel, "require", lambda self, **target: None)
    model, graph, *_ = net()
    batch = (torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))
    task = SupervisedTask(model, [batch], [batch], [batch])
    rules = [{"match": "re:blocks.*", "rank_ratio": [None, 0.5, 0.25]}]
    space = SearchSpace.from_rules(graph, rules, rank_grid=4)
    expected = label_slower_ranks(space, LatencyModel.load(profile))
    assert expected != space
    settings = SearchSettings.from_dict({"runtime": STUB, "latency_model": str(profile), "space": space.name})
    prepared = prepare(task, space, settings, None)
    assert prepared.space == expected
    folder = RunFolder(tmp_path)
    folder.reference.write_bytes(prepared.context.reference)
    assert open_run(folder, prepared.info, task).space == expected
