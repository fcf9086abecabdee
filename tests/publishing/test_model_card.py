"""The model card says what the manifest says, and lets no name write markup."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from autocompress.publishing.model_card import write_card
from autocompress.results.records import FileNumbers
from tests.shared.points import Point


def card(folder: Path, uncompressed: FileNumbers | None = None) -> str:
    write_card(folder, uncompressed)
    return (folder / "README.md").read_text(encoding="utf-8")


def test_it_says_what_was_done_and_measured(mixed_point: Point) -> None:
    folder, record = mixed_point
    text = card(folder, record.file)
    assert record.file is not None
    assert text.startswith('---\nlicense: "unknown"\nlibrary_name: onnxruntime\n')
    for part in (
        "channels removed: conv1 8",
        "conv2 channel of rank 8",
        "bits: conv1 8, fc 8",
        "pip install onnxruntime",
    ):
        assert part in text
    accuracy = f"{100 * record.file.metrics['test']['accuracy']:.2f}%"
    row = next(line for line in text.splitlines() if line.startswith("| accuracy, test, 192 samples"))
    assert row.count(f"{accuracy} (95 %: ") == 2, "the model and the uncompressed one, here the same"
    assert "None" not in text and "nan" not in text


def test_names_are_text(mixed_point: Point, tmp_path: Path) -> None:
    folder = shutil.copytree(mixed_point[0], tmp_path / "point")
    file = folder / "manifest.json"
    hostile = "<img src=x> [a](http://b) *c* `d`\n# e"
    data = json.loads(file.read_text(encoding="utf-8"))
    data["recipe"]["dropped"] = [hostile]
    file.write_text(json.dumps({**data, "task": hostile, "license": hostile}))
    text = card(folder)
    body = text.split("---\n", 2)[2]
    assert "\\<img" in body and "<img" not in body.replace("\\<", "")
    assert "](" not in body.replace("\\]", "") and "\n# e" not in text
    assert yaml.safe_load(text.split("---\n")[1])["license"] == hostile


def test_names_of_metrics_splits_files_and_runtimes_are_text_too(mixed_point: Point, tmp_path: Path) -> None:
    folder = shutil.copytree(mixed_point[0], tmp_path / "point")
    file = folder / "manifest.json"
    hostile = "<b>x</b> | [a](http://b) `c`\n---\n# d"
    data = json.loads(file.read_text(encoding="utf-8"))
    numbers = {**data["numbers"], "metrics": {hostile: {hostile: 0.5}}}
    changes = {"metric": hostile, "numbers": numbers, "runtime_file": hostile, "runtime": hostile}
    file.write_text(json.dumps({**data, **changes, "versions": {hostile: hostile}}))
    text = card(folder)
    head, body = text.split("---\n", 2)[1:]
    assert yaml.safe_load(head)["library_name"] == hostile
    assert "<b>" not in body.replace("\\<", "") and "](" not in body.replace("\\]", "")
    assert not any(line.startswith("# d") or line == "---" for line in body.splitlines())
