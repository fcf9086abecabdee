"""A model by id and files of data are a task: checked, searched, found again; bad ones are refused with the way out."""

from __future__ import annotations

import json
from pathlib import Path

import cloudpickle
import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.graph import inspect_model
from autocompress.task import Inputs, as_inputs, call_model, load_task
from autocompress.task_check import check_metrics, check_task
from autocompress.tasks.from_id import open_dataset
from autocompress.tasks.identifiers import read_task_id
from tests.tasks.hub_models import write_classifier, write_texts, write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier in `model/` and its labelled texts in `texts.csv`. Not to be changed."""
    folder = tmp_path_factory.mktemp("ids")
    write_classifier(folder / "model")
    write_texts(folder / "texts.csv")
    return folder


def own_predict(model: nn.Module, inputs: Inputs) -> Tensor:
    outputs: Tensor = call_model(model, inputs)
    return outputs


def test_a_folder_and_a_table_are_a_sound_task(folder: Path) -> None:
    task = load_task(f"hf:{folder}/model", data=str(folder / "texts.csv"))
    check_task(task)
    model = task.build_model()
    figures = check_metrics(task.evaluate(lambda inputs: own_predict(model, inputs), "test"), "test")
    assert list(figures) == ["accuracy", "loss"]
    assert next(iter(task.objectives.items())) == ("accuracy", "maximize")  # type: ignore[attr-defined]
    graph = inspect_model(model, as_inputs(task.example_inputs()))
    assert any("attention" in group.name for group in graph.groups), "heads can be pruned"


def test_the_metric_is_that_of_the_models_own_answers(folder: Path) -> None:
    task = load_task(f"hf:{folder}/model", data=str(folder / "texts.csv"))
    split = open_dataset(read_task_id(task.spec)).splits["test"]  # type: ignore[attr-defined]
    model = task.build_model()
    with torch.no_grad():
        answers = [
            int(own_predict(model, split.inputs([place])).argmax()) == int(split.labels[place])
            for place in range(len(split))
        ]
    figures = task.evaluate(lambda inputs: own_predict(model, inputs), "test")
    assert figures["accuracy"] == pytest.approx(sum(answers) / len(answers))


def test_the_text_of_a_task_finds_it_again_from_another_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    first = load_task("hf:./model", data="texts.csv", max_length=8)
    monkeypatch.chdir("/")
    again = load_task(first.spec)  # type: ignore[attr-defined]
    assert again.spec == first.spec  # type: ignore[attr-defined]
    ours, theirs = (next(iter(task.train_batches(3))) for task in (first, again))
    assert torch.equal(ours[1], theirs[1])
    assert ours[0]["input_ids"].shape == (32, 8)  # type: ignore[call-overload]


def test_it_travels_without_its_data(folder: Path) -> None:
    task = load_task(f"hf:{folder}/model", data=str(folder / "texts.csv"))
    next(iter(task.train_batches(0)))
    assert len(cloudpickle.dumps(task)) < 2_000


def test_inputs_without_labels_are_labelled_by_the_uncompressed_model(folder: Path) -> None:
    texts = folder / "plain.txt"
    lines = (folder / "texts.csv").read_text(encoding="utf-8").splitlines()[1:]
    texts.write_text("\n".join(line.split(",")[0] for line in lines), encoding="utf-8")
    task = load_task(f"hf:{folder}/model", inputs=str(texts))
    check_task(task)
    model = task.build_model()
    same = task.evaluate(lambda inputs: own_predict(model, inputs), "selection")
    turned = task.evaluate(lambda inputs: -own_predict(model, inputs), "selection")
    assert (same["agreement"], turned["agreement"]) == (1.0, 0.0)
    assert any("not how right it is" in line for line in task.notes())  # type: ignore[attr-defined]
    batch = next(iter(task.train_batches(0)))
    with torch.no_grad():
        outputs = own_predict(model, batch[0])
    assert task.loss(outputs, batch).item() == pytest.approx(0.0, abs=1e-6), "its own outputs are the teacher's"
    assert task.loss(-outputs, batch).item() > 1e-4


def test_few_labels_and_many_inputs_give_both_figures(folder: Path) -> None:
    write_texts(folder / "few.csv", 20)
    texts = folder / "more.txt"
    texts.write_text("\n".join(f"good film {'very ' * n}" for n in range(30)), encoding="utf-8")
    task = load_task(f"hf:{folder}/model", data=str(folder / "few.csv"), inputs=str(texts))
    model = task.build_model()
    figures = task.evaluate(lambda inputs: own_predict(model, inputs), "test")
    assert list(figures) == ["accuracy", "loss", "agreement"]
    check_task(task)


def test_what_bad_models_are_refused_for(folder: Path, tmp_path: Path) -> None:
    data = str(folder / "texts.csv")
    write_classifier(tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"only pickled weights \(pytorch_model.bin\)"):
        load_task(f"hf:{tmp_path}/pickled", data=data)
    write_classifier(tmp_path / "code")
    config = tmp_path / "code" / "config.json"
    named = json.loads(config.read_text(encoding="utf-8")) | {"auto_map": {"AutoModel": "modeling.Own"}}
    config.write_text(json.dumps(named), encoding="utf-8")
    with pytest.raises(InputError, match="auto_map.*--trust-remote-code"):
        load_task(f"hf:{tmp_path}/code", data=data)
    write_classifier(tmp_path / "bare")
    for file in (tmp_path / "bare").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="needs its tokenizer"):
        load_task(f"hf:{tmp_path}/bare", data=data)
    with pytest.raises(InputError, match="there is no .*nowhere"):
        load_task(f"hf:{tmp_path}/nowhere", data=data)


def test_an_id_without_a_network_names_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=rf"model.safetensors in the cache {tmp_path}/models--own--thing"):
        load_task("hf:own/thing")


def test_a_base_model_is_no_classifier(folder: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    from tests.tasks.hub_models import SIZES

    BertModel(BertConfig(vocab_size=12, max_position_embeddings=32, **SIZES)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    task = load_task(f"hf:{tmp_path}", data=str(folder / "texts.csv"), kind="text-classification")
    with pytest.raises(InputError, match=r"they lack classifier.bias.*would be random"):
        task.build_model()


def test_a_base_model_gives_sentence_vectors(folder: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    from tests.tasks.hub_models import SIZES

    BertModel(BertConfig(vocab_size=12, max_position_embeddings=32, **SIZES)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    task = load_task(f"hf:{tmp_path}", inputs=str(folder / "texts.csv"))
    check_task(task)
    model = task.build_model()
    assert own_predict(model, task.example_inputs()).shape == (1, 32)
    assert task.evaluate(lambda inputs: own_predict(model, inputs), "test")["cosine"] == pytest.approx(1.0)
    assert task.teacher_loss == "cosine"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("metric", "exactness", "a metric must be one of accuracy, .*but got 'exactness'"),
        ("max_length", 99, "at most the model's 32 tokens, but got 99"),
        ("text_column", "txt", r"must be one of \['sentence', 'label'\].*but got 'txt'"),
        ("label_column", "y", "the label column must be one of .*but got 'y'"),
        ("teacher_loss", "l1", "teacher_loss must be one of kl, mse, cosine, none"),
        ("colour", "red", "an option of an id must be one of data, inputs, .*but got 'colour'"),
    ],
)
def test_bad_options_name_the_rule_and_the_value(folder: Path, option: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_task(load_task(f"hf:{folder}/model", data=str(folder / "texts.csv"), **{option: value}))
        load_task(f"hf:{folder}/model", data=str(folder / "texts.csv"), **{option: value}).evaluate(
            lambda inputs: torch.zeros(len(inputs["input_ids"]), 2),  # type: ignore[call-overload]
            "test",
        )


def test_labels_outside_the_model_and_missing_data(folder: Path, tmp_path: Path) -> None:
    odd = write_texts(tmp_path / "odd.csv", labels=("negative", "furious"))
    with pytest.raises(InputError, match=r"classes of the model \(negative, positive\), but .*odd.csv has furious"):
        next(iter(load_task(f"hf:{folder}/model", data=str(odd)).train_batches(0)))
    numbers = write_texts(tmp_path / "numbers.csv", labels=("0", "7"))
    with pytest.raises(InputError, match=r"2 classes \(0 to 1\), but .*numbers.csv has 7"):
        next(iter(load_task(f"hf:{folder}/model", data=str(numbers)).train_batches(0)))
    with pytest.raises(InputError, match="needs data: --data"):
        next(iter(load_task(f"hf:{folder}/model").train_batches(0)))
    with pytest.raises(InputError, match="options .data. are for models by id"):
        load_task("digits", data="texts.csv")
