"""The command line on a model by id: inspect, search, resume from another folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.cli import main
from autocompress.results.run_folder import RunFolder
from autocompress.tasks.identifiers import TaskId, is_task_id, read_task_id
from tests.tasks.hub_models import write_classifier, write_texts

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_inspect_checks_the_task_as_a_search_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path / "model")
    write_texts(tmp_path / "texts.csv")
    assert main(["inspect", "hf:./model"]) == 0, "without data the model can be looked at"
    assert main(["inspect", "hf:./model", "--data", "texts.csv"]) == 0
    assert "text-classification by BertForSequenceClassification, 2 classes" in capsys.readouterr().out
    assert main(["inspect", "hf:./model", "--data", "texts.csv", "--label-column", "y"]) == 2
    assert "the label column must be one of" in capsys.readouterr().err
    assert main(["inspect", "digits", "--data", "texts.csv"]) == 2
    assert "--data is for models by id" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_by_id_is_resumed_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path / "model")
    write_texts(tmp_path / "texts.csv")
    flags = ["--trials", "2", "--rungs", "0,2", "--workers", "1", "--sensitivity", "fisher", "--min-accuracy", "0.01"]
    assert main(["search", "hf:./model", "--data", "texts.csv", *flags, "--run-dir", "run"]) == 0
    info = RunFolder(tmp_path / "run").read_info()
    assert info.task_spec == f"hf:{tmp_path}/model?data={tmp_path}/texts.csv"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["resume", str(tmp_path / "run"), "--trials", "3"]) == 0
    run = RunFolder(tmp_path / "run").read()
    assert run.front.points
    assert run.front.points[0].file is not None
    assert "accuracy" in run.front.points[0].file.metrics["test"]


def test_texts_of_ids_are_read_back() -> None:
    plain = TaskId("hf", "own/thing", data="/a b/t&x=1.csv", text_column="a,b", max_length=8, trust_remote_code=True)
    assert read_task_id(plain.text()) == plain
    assert read_task_id("timm:resnet18").text() == "timm:resnet18"
    assert not is_task_id("digits")
    assert not is_task_id("my_model.py:task")
