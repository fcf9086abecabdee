"""The SST-2 task gives the known accuracy of MiniLM, fixed shapes, and heads and layers that can be searched."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autocompress.errors import InputError, MissingDataError
from autocompress.graph import inspect_model
from autocompress.space.search_space import SearchSpace
from autocompress.task import Inputs, call_model, load_task
from autocompress.task_check import check_task
from autocompress.tasks import sst2
from autocompress.tasks.data import DATA_VARIABLE, data_folder

pytest.importorskip("transformers", reason="MiniLM is built by transformers")
pytest.importorskip("tokenizers", reason="SST-2 is read by tokenizers")


def small_model() -> sst2.SentenceClassifier:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    return sst2.SentenceClassifier({"vocab_size": 50, **sizes}).eval()


@pytest.mark.data
def test_it_is_sound_and_right_about_the_first_sentences() -> None:
    task = load_task("sst2:minilm")
    check_task(task)
    model = task.build_model()
    ids, mask, labels = (part[:100] for part in sst2.load_sentences("test"))
    with torch.no_grad():
        hits = (call_model(model, (ids, mask)).argmax(1) == labels).sum()
    assert 84 <= hits <= 94


@pytest.mark.data
@pytest.mark.slow
def test_the_known_accuracy() -> None:
    task = sst2.Sst2Task()
    model = task.build_model()
    with torch.no_grad():
        figures = task.evaluate(lambda inputs: call_model(model, inputs), "test")
    assert round(figures["accuracy"] * 872) == pytest.approx(773, abs=2)


@pytest.mark.data
def test_evaluate_sees_the_split_it_is_asked_for() -> None:
    seen: list[Tensor] = []

    def predict(inputs: Inputs) -> Tensor:
        assert isinstance(inputs, tuple)
        seen.append(inputs[0])
        return torch.tensor([[0.0, 1.0]]).expand(len(inputs[0]), -1)

    figures = sst2.Sst2Task().evaluate(predict, "test")
    with gzip.open(data_folder() / "text" / "sst2_test.tsv.gz", "rt", encoding="utf-8") as file:
        rows = file.read().strip("\n").split("\n")[1:]
    assert figures["accuracy"] == pytest.approx(sum(row.endswith("\t1") for row in rows) / len(rows))
    assert torch.cat(seen).shape == (872, 64)


@pytest.mark.data
def test_no_test_sentence_is_cut_and_padding_is_masked() -> None:
    ids, mask, _ = sst2.load_sentences("test")
    assert (mask.sum(1) < 64).all()
    assert not ids[mask == 0].any(), "the padding token is 0"
    assert (ids[:, 0] == ids[0, 0]).all(), "every sentence begins with the same mark"
    vocabulary = (data_folder() / "minilm" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    words = [vocabulary[i] for i in ids[0, 1 : mask[0].sum() - 1].tolist()]
    with gzip.open(data_folder() / "text" / "sst2_test.tsv.gz", "rt", encoding="utf-8") as file:
        sentence = file.read().split("\n")[1].split("\t")[0]
    assert "".join(words).replace("##", "") == sentence.lower().replace(" ", "")


@pytest.mark.data
def test_batches_repeat() -> None:
    task = sst2.Sst2Task()
    first, again, other = (next(iter(task.train_batches(seed)))[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert [batch[0].shape for batch in task.calibration_batches()] == [(16, 64)] * 8  # type: ignore[index]


def test_padding_does_not_change_the_answer() -> None:
    model, mask = small_model(), torch.tensor([[1] * 5 + [0] * 59])
    ids = torch.randint(1, 50, (1, 64))
    other = torch.where(mask == 1, ids, 3)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, mask), model(other, mask))


def test_heads_inner_channels_and_layers_are_searched() -> None:
    task = sst2.Sst2Task()
    space = SearchSpace.load("minilm", inspect_model(small_model(), task.example_inputs()))
    kinds = {(knob.kind, knob.target.removeprefix("bert.encoder.layer.")) for knob in space.knobs}
    for layer in "01":
        assert ("drop", f"{layer}.attention.self") in kinds, "attention and feed-forward go each by itself"
        assert ("drop", f"{layer}.intermediate") in kinds
        assert ("prune_ratio", f"{layer}.attention.self.query") in kinds
        assert ("prune_ratio", f"{layer}.intermediate.dense") in kinds
    assert not any(kind == "prune_ratio" and "embeddings" in target for kind, target in kinds)


def test_missing_data_and_unknown_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(MissingDataError, match="config.json, which is not there; set AUTOCOMPRESS_DATA"):
        sst2.Sst2Task().build_model()
    with pytest.raises(InputError, match="selection or test, but got 'train'"):
        sst2.Sst2Task().evaluate(lambda inputs: torch.zeros(1, 2), "train")
