"""The spoken-digit task gives the known accuracy, disjoint halves, repeatable batches, and prunable layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from autocompress.errors import InputError, MissingDataError
from autocompress.graph import inspect_model
from autocompress.space.search_space import SearchSpace
from autocompress.task import call_model, load_task
from autocompress.task_check import check_task
from autocompress.tasks.data import DATA_VARIABLE, data_folder
from autocompress.tasks.voice_lstm import SpokenDigitNet, VoiceLstmTask, load_recordings


@pytest.mark.data
def test_it_is_sound_and_has_the_known_accuracy() -> None:
    task = load_task("voice_lstm")
    check_task(task)
    model = task.build_model()
    with torch.no_grad():
        figures = task.evaluate(lambda inputs: call_model(model, inputs), "test300")
    assert list(figures) == ["accuracy", "loss"]
    assert figures["accuracy"] == pytest.approx(299 / 300)


@pytest.mark.data
def test_halves_are_disjoint_and_complete() -> None:
    halves, whole = [load_recordings(split) for split in ("selection", "test")], load_recordings("test300")
    assert [len(half[2]) for half in halves] == [150, 150]
    for half in halves:
        assert half[2].bincount().tolist() == [15] * 10
    rows = [{recording.numpy().tobytes() for recording in part[0]} for part in (*halves, whole)]
    assert rows[0] | rows[1] == rows[2]
    assert not rows[0] & rows[1]
    train = {recording.numpy().tobytes() for recording in load_recordings("train")[0]}
    assert len(train) == 2700
    assert not train & rows[2]


@pytest.mark.data
def test_recordings_are_those_of_the_archive() -> None:
    frames, n_frames, digits = load_recordings("train")
    archive = np.load(data_folder() / "voice_lstm" / "fsdd_logmel.npz")
    wanted = [i for i in range(len(archive["n"])) if archive["index"][i] >= 5]
    for row in (0, 17, len(wanted) - 1):
        start = int(archive["n"][: wanted[row]].sum())
        kept = min(int(archive["n"][wanted[row]]), 96)
        assert n_frames[row] == kept
        assert digits[row] == archive["digit"][wanted[row]]
        expected = 10.0 ** archive["logmel"][start : start + kept].astype(np.float32)
        np.testing.assert_allclose(frames[row, :kept].numpy(), expected, rtol=1e-6)
        assert not frames[row, kept:].any()


@pytest.mark.data
def test_batches_repeat() -> None:
    task = VoiceLstmTask()
    first, again, other = (next(iter(task.train_batches(seed)))[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert [batch[0].shape for batch in task.calibration_batches()] == [(32, 96, 40)] * 8  # type: ignore[index]


def test_frames_after_the_end_do_not_count() -> None:
    model = SpokenDigitNet().eval()
    frames = torch.randn(2, 96, 40)
    longer = frames.clone()
    longer[0, 50:] = 7.0
    with torch.no_grad():
        short, long = (model(x, torch.tensor([50, 96])) for x in (frames, longer))
    assert torch.equal(short, long)


def test_each_layer_has_its_own_width() -> None:
    task = VoiceLstmTask()
    graph = inspect_model(SpokenDigitNet().eval(), task.example_inputs())
    space = SearchSpace.load("voice_lstm", graph)
    groups = {knob.target: len(knob.choices) for knob in space.knobs if knob.kind == "prune_ratio"}
    assert groups == {"lstm0": 7, "lstm1": 7, "lstm2": 7}


def test_missing_data_and_unknown_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(MissingDataError, match="no.*there; set AUTOCOMPRESS_DATA"):
        VoiceLstmTask().build_model()
    with pytest.raises(InputError, match="selection, test, test300, but got 'train'"):
        VoiceLstmTask().evaluate(lambda inputs: torch.zeros(1, 10), "train")
