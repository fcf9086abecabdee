"""A run's folder read back as data; what is damaged says so, what is no number does no harm."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

from autocompress.config import DistillSettings, SearchSettings
from autocompress.errors import InputError
from autocompress.results.records import Latency, TrialRecord, append_record, write_records
from autocompress.results.run_folder import RunFolder, RunInfo
from autocompress.space.candidate import Candidate
from tests.shared.objectives import of_accuracy

INFO = RunInfo(
    task="my_model.py:task",
    task_spec="/somewhere/my_model.py:task",
    settings=SearchSettings(
        space="resnet_cifar",
        latency_budget="0.5x",
        minutes=1.5,
        n_workers=2,
        distill=DistillSettings(rungs=(0, 7), feature_weight=0.5, feature_layers=("bn1",)),
    ),
    objectives=of_accuracy(0.5, 1.25, further={"perplexity": "minimize"}),
    model_digest="0123456789ab",
    space_digest="ba9876543210",
    layers=({"path": "conv1", "kind": "conv2d", "n_params": 3, "n_macs": 9, "group": "conv1", "branch": None},),
    knobs=({"kind": "rank_ratio", "target": "fc", "choices": [None, 0.5]},),
    frozen=({"name": "fc", "what": "channels", "reason": "they are the model's outputs: 10 « classes »"},),
    machine={"cpu": "Some CPU", "cores": "2"},
    versions={"torch": "2.13.0"},
    command="autocompress search",
    started="2025-01-01T00:00:00+00:00",
)


def complete(number: int, ratio: float, accuracy: float) -> TrialRecord:
    candidate = Candidate(prune_ratio={"conv1": number / 100}) if number else Candidate()
    latency = Latency(ratio, 0.01, 1.25 * ratio, 9)
    return TrialRecord(
        number, "complete", "sampler", candidate, {"accuracy": accuracy}, latency, ratio <= 0.5, size_mib=0.1
    )


RECORDS = [
    complete(0, 1.0, 0.95),
    complete(1, 0.4, 0.9),
    complete(2, 0.3, 0.8),
    complete(3, 0.35, 0.7),
    TrialRecord(4, "failed", "sampler", Candidate(weight_bits={"fc": 8}), error="Traceback ...", size_mib=0.0),
]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.write_info(INFO)
    write_records(folder.records, RECORDS)
    return folder


def test_everything_comes_back(folder: RunFolder) -> None:
    read = folder.read_info()
    for item in fields(RunInfo):
        assert getattr(read, item.name) == getattr(INFO, item.name), item.name
    run = folder.read()
    assert run.info == INFO
    assert run.folder == folder
    assert list(run.records) == RECORDS
    assert [point.number for point in run.front.points] == [2, 1], "the others are over the budget, worse, or failed"
    assert run.front.baseline == RECORDS[0]
    assert (run.front.metric, run.front.budget_ratio, run.front.reference_ms) == ("accuracy", 0.5, 1.25)


def test_writing_again_replaces_and_leaves_nothing_else(folder: RunFolder) -> None:
    folder.write_info(replace(INFO, objectives=replace(INFO.objectives, reference_ms=9.0), task_spec=None))
    read = folder.read_info()
    assert (read.objectives.reference_ms, read.task_spec) == (9.0, None)
    assert sorted(path.name for path in folder.path.iterdir()) == ["run.json", "trials.jsonl"]


def test_a_run_without_trials(folder: RunFolder) -> None:
    write_records(folder.records, [])
    run = folder.read()
    assert run.records == ()
    assert run.front.points == ()


def test_a_run_whose_trials_are_gone_is_not_one_without(folder: RunFolder) -> None:
    folder.records.unlink()
    with pytest.raises(InputError, match="`autocompress resume .*` writes the file anew"):
        folder.read()


def test_a_trial_that_is_there_twice(folder: RunFolder) -> None:
    text = folder.records.read_text()
    folder.records.write_text(text + text)
    with pytest.raises(InputError, match="line 6: trial 0 is in the file twice"):
        folder.read()


def test_a_metric_that_no_trial_has(folder: RunFolder) -> None:
    data = json.loads(folder.info.read_text(encoding="utf-8"))
    folder.info.write_text(json.dumps({**data, "metric": "acuracy"}))
    with pytest.raises(InputError, match="'acuracy' is in no trial, they have \\['accuracy'\\]"):
        folder.read()


@pytest.mark.parametrize(
    "change",
    [
        {"number": "1"},
        {"number": -1},
        {"number": True},
        {"state": "lost"},
        {"metrics": {"accuracy": "high"}},
        {"metrics": []},
        {"latency": {"ratio": "1", "spread": 0.0, "ms": 1.0, "n_rounds": 1}},
        {"latency": 3},
        {"rungs": [3]},
        {"rungs": 3},
        {"candidate": []},
        {"candidate": {"prune_ratio": {"conv1": "0.5"}}},
        {"candidate": {"drop": "conv1"}},
        {"candidate": {"weight_bits": {"fc": [8]}}},
        {"seconds": {"fine_tune": None}},
        {"started": "now"},
        {"file": []},
        {"parent": 3},
        {"surprise": 3},
    ],
)
def test_a_record_of_other_types_is_named(folder: RunFolder, change: dict[str, object]) -> None:
    lines = folder.records.read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), **change})
    folder.records.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"trials\.jsonl, line 3: "):
        folder.read()


def test_every_path_lies_inside_and_apart(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    named = [folder.info, folder.study, folder.records, folder.table, folder.report, folder.front]
    paths = [*named, folder.reference, folder.lock, folder.trial("trial_0001"), folder.point("trial_0001")]
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(tmp_path) and path != tmp_path for path in paths)
    assert folder.point("trial_0001").parent == folder.front


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_no_number_is_not_on_the_front(folder: RunFolder, value: float) -> None:
    append_record(folder.records, complete(5, 0.2, value))
    run = folder.read()
    assert len(run.records) == 6
    assert math.isnan(run.records[5].metrics["accuracy"])
    assert [point.number for point in run.front.points] == [2, 1]
    assert math.isfinite(run.front.hypervolume)


def test_a_metric_written_as_the_word_nan(folder: RunFolder) -> None:
    data = complete(5, 0.2, 0.5).to_dict()
    data["metrics"] = {"accuracy": math.nan}
    with folder.records.open("a", encoding="utf-8") as file:
        file.write(json.dumps(data) + "\n")
    assert [point.number for point in folder.read().front.points] == [2, 1]


def test_a_latency_that_is_no_number_is_not_on_the_front(folder: RunFolder) -> None:
    append_record(folder.records, complete(5, math.nan, 0.99))
    assert [point.number for point in folder.read().front.points] == [2, 1]
    write_records(folder.records, [complete(0, 1.0, 0.9), complete(1, math.nan, 0.99)])
    front = folder.read().front
    assert [point.number for point in front.points] == [0], "the nearest"
    assert "no trial is within 0.5x" in front.reason


# --- damage


def test_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match=r"holds run\.json, but .* does not; name the folder of a search"):
            RunFolder(path).read()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[1]", b"3", b"null", b'"x"', b"\xff\xfe", b"{}"])
def test_a_file_that_is_no_run(folder: RunFolder, content: bytes) -> None:
    folder.info.write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        folder.read_info()


def test_a_file_that_was_cut_off(folder: RunFolder) -> None:
    whole = folder.info.read_bytes()
    for n_bytes in range(1, len(whole), 97):
        folder.info.write_bytes(whole[:n_bytes])
        with pytest.raises(InputError, match=r"run\.json is damaged"):
            folder.read_info()


def test_another_version(folder: RunFolder) -> None:
    data = json.loads(folder.info.read_text(encoding="utf-8"))
    folder.info.write_text(json.dumps({**data, "schema": 99}))
    with pytest.raises(InputError, match="written by another version"):
        folder.read_info()


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"layers": None},
        {"settings": {"temprature": 1}},
        {"settings": {"n_trials": -1}},
        {"settings": None},
        {"settings": 3},
        {"reference_ms": 0},
        {"reference_ms": "1"},
        {"direction": "up"},
        {"task": 3},
        {"layers": [3]},
        {"started": "yesterday"},
        {"started": "2025-01-01T00:00:00"},
        {"machine": []},
        {"rank_grid": 1.5},
    ],
)
def test_parts_that_do_not_fit(folder: RunFolder, change: dict[str, object]) -> None:
    data = json.loads(folder.info.read_text(encoding="utf-8"))
    folder.info.write_text(json.dumps({**data, **change}))
    with pytest.raises(InputError):
        folder.read_info()


@pytest.mark.parametrize("key", ["task", "settings", "metric", "reference_ms", "model_digest", "space_digest"])
def test_parts_that_are_missing(folder: RunFolder, key: str) -> None:
    data = json.loads(folder.info.read_text(encoding="utf-8"))
    del data[key]
    folder.info.write_text(json.dumps(data))
    with pytest.raises(InputError, match=f"damaged.*{key}"):
        folder.read_info()


def test_records_that_are_damaged(folder: RunFolder) -> None:
    folder.records.write_text("{broken\n" + folder.records.read_text())
    with pytest.raises(InputError, match="line 1 is not JSON"):
        folder.read()
