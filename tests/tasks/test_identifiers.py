"""Ids of models as text: round trip, options, paths, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError
from autocompress.tasks.identifiers import TaskId, is_task_id, read_task_id

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1)


@given(
    column=st.none() | TEXTS,
    metric=st.none() | TEXTS,
    n_train=st.integers(1, 10**6),
    trust=st.booleans(),
    kind=st.sampled_from([None, "causal-lm", "image-classification"]),
)
def test_the_text_gives_the_same_id(
    column: str | None, metric: str | None, n_train: int, trust: bool, kind: str | None
) -> None:
    task = TaskId(
        "timm", "resnet18", label_column=column, metric=metric, n_train=n_train, trust_remote_code=trust, kind=kind
    )
    assert read_task_id(task.text()) == task


def test_paths_that_exist_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts.csv").touch()
    monkeypatch.chdir(tmp_path)
    task = read_task_id("hf:./model?data=texts.csv")
    assert (task.name, task.data) == (str(tmp_path / "model"), str(tmp_path / "texts.csv"))
    assert read_task_id("timm:resnet18", {"data": "other.csv"}).data == "other.csv", "a data set's name"


def test_options_win_and_none_is_left_out() -> None:
    task = read_task_id("timm:resnet18?n_test=5&n_train=7", {"n_test": 9, "metric": None})
    assert (task.n_test, task.n_train, task.metric) == (9, 7, None)


def test_only_known_sources_are_ids() -> None:
    assert is_task_id("hf:x") and is_task_id("torchvision:resnet18")
    assert not is_task_id("hf") and not is_task_id("digits") and not is_task_id("my_model.py:task")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf:", "an id must be like hf:NAME"),
        ("hub:x", "an id must be like hf:NAME"),
        ("timm:x?n_train", "options of an id must be like"),
        ("timm:x?no_such=1", "an option of an id must be one of data, inputs"),
        ("timm:x?n_train=many", "option n_train must be a whole number, but got 'many'"),
        ("timm:x?n_train=0", "n_train must be at least 1, but got 0"),
        ("timm:x?kind=poem", "kind must be one of text-classification"),
        ("timm:x?trust_remote_code=perhaps", "option trust_remote_code must be true or false, but got 'perhaps'"),
    ],
)
def test_bad_ids_name_the_rule_and_the_value(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_task_id(text)
