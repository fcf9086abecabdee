"""Tables, text files and folders are read as samples, and cut so that no content is in two splits."""

from __future__ import annotations

import gzip
from pathlib import Path

import hypothesis.strategies as st
import pandas as pd
import pytest
from hypothesis import given

from autocompress.errors import InputError
from autocompress.tasks.dataset import cut_splits
from autocompress.tasks.samples import IMAGES, read_files, read_texts

ROWS = pd.DataFrame({"text": [f"text {i}" for i in range(200)], "label": [i % 2 for i in range(200)]})


def test_all_kinds_of_tables_give_the_same(tmp_path: Path) -> None:
    ROWS.to_csv(tmp_path / "t.csv", index=False)
    ROWS.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    ROWS.to_parquet(tmp_path / "t.parquet")
    ROWS.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    ROWS.to_json(tmp_path / "t.json", orient="records")
    found = [
        read_texts(str(tmp_path / f"t.{end}"), None, None, labelled=True)
        for end in ("csv", "tsv", "parquet", "jsonl", "json")
    ]
    assert len({samples.contents for samples in found}) == 1
    assert len({samples.labels for samples in found}) == 1
    assert found[0].contents[7] == "text 7"


def test_words_that_look_missing_are_texts_and_labels(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("text,label\nNA,None\nnull,NA\n", encoding="utf-8")
    samples = read_texts(str(file), None, None, labelled=True)
    assert (samples.contents, samples.labels) == (("NA", "null"), ("None", "NA"))


def test_a_folder_of_files_by_split_is_taken_and_hidden_labels_are_not(tmp_path: Path) -> None:
    ROWS[:100].to_csv(tmp_path / "train.csv", index=False)
    ROWS[100:150].to_csv(tmp_path / "validation.csv", index=False)
    ROWS[150:].assign(label=-1).to_csv(tmp_path / "test.csv", index=False)
    samples = read_texts(str(tmp_path), None, None, labelled=True)
    assert [samples.splits.count(split) for split in ("train", "selection", "test")] == [100, 50, 0]
    splits = cut_splits(samples.contents, samples.splits)
    assert {split: len(places) for split, places in splits.items()} == {"train": 100, "selection": 25, "test": 25}


def test_a_column_of_splits_and_pairs(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": list("xyz"), "b": list("uvw"), "label": [0, 1, 0], "split": ["train", "dev", "test"]})
    table.to_csv(tmp_path / "t.csv", index=False)
    samples = read_texts(str(tmp_path / "t.csv"), "a,b", None, labelled=True)
    assert samples.contents[0] == ("x", "u")
    assert samples.splits == ("train", "selection", "test")
    with pytest.raises(InputError, match=r"one column of texts, but has \['a', 'b'\].*--text-column"):
        read_texts(str(tmp_path / "t.csv"), None, None, labelled=True)


def test_rows_without_a_label_are_refused_and_blank_texts_counted(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    table = ROWS.astype({"label": "object"})
    table.loc[[3, 8], "label"] = None
    table.to_csv(file, index=False)
    with pytest.raises(InputError, match="2 of 200 have none: rows 4, 9"):
        read_texts(str(file), None, None, labelled=True)
    ROWS.assign(text=["", *ROWS["text"][1:]]).to_csv(file, index=False)
    samples = read_texts(str(file), None, None, labelled=True)
    assert (len(samples), samples.skipped) == (199, ("row 1 of t.csv has no text",))
    ROWS.assign(text=["", "", "", *ROWS["text"][3:]]).to_csv(file, index=False)
    with pytest.raises(InputError, match="at most 1% .* but 3 of 200 are: row 1"):
        read_texts(str(file), None, None, labelled=True)


def test_text_files_are_lines_or_classes(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    assert read_texts(str(tmp_path / "t.txt"), None, None, labelled=False).contents == ("one", "two")
    with pytest.raises(InputError, match="give it as inputs"):
        read_texts(str(tmp_path / "t.txt"), None, None, labelled=True)
    for name in ("test/pos/1.txt", "train/neg/1.txt"):
        (tmp_path / "folder" / name).parent.mkdir(parents=True)
        (tmp_path / "folder" / name).write_text(name, encoding="utf-8")
    samples = read_texts(str(tmp_path / "folder"), None, None, labelled=True)
    assert (samples.labels, samples.splits) == (("pos", "neg"), ("test", "train"))


def test_files_of_no_class_and_broken_tables(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(InputError, match="subfolder of their class.*1 of 1 do not: 1.png"):
        read_files(str(tmp_path), IMAGES, labelled=True)
    with pytest.raises(InputError, match="there is no .*nowhere.csv"):
        read_texts(str(tmp_path / "nowhere.csv"), None, None, labelled=True)
    (tmp_path / "t.csv").write_text('text,label\n"a,b\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"must be a readable .csv file"):
        read_texts(str(tmp_path / "t.csv"), None, None, labelled=True)
    (tmp_path / "t.parquet").write_bytes(gzip.compress(b"no table"))
    with pytest.raises(InputError, match=r"must be a readable .parquet file"):
        read_texts(str(tmp_path / "t.parquet"), None, None, labelled=True)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefghij"), st.sampled_from([None, "train", "selection", "test"])), max_size=60
    )
)
def test_no_content_is_in_two_splits(rows: list[tuple[str, str | None]]) -> None:
    contents, given_splits = [text for text, _ in rows], [split for _, split in rows]
    try:
        splits = cut_splits(contents, given_splits)
    except InputError:
        assert len(set(contents)) < 10, "with ten contents there is something for each split"
        return
    seen = [{contents[place] for place in places} for places in splits.values()]
    assert not (seen[0] & seen[1]) and not (seen[0] & seen[2]) and not (seen[1] & seen[2])
    assert splits == cut_splits(contents, given_splits), "the seed is fixed"
    known = {split or "train" for split in given_splits}
    first = next(split for split in ("train", "selection", "test") if split in known)
    named_test = [place for place, split in enumerate(given_splits) if split == "test"]
    if first != "test":
        assert set(named_test) <= set(splits["test"]), "a named test sample is never trained or selected on"
