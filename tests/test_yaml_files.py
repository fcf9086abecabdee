"""YAML that people write: what is read, and what is refused with its reason within seconds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from autocompress.errors import InputError
from autocompress.yaml_files import read_yaml_mapping

NINE = "bcdefghij"


def bomb(item: str) -> str:
    """Nine times nine times ... the same."""
    lines = [f"a: &a {item}"]
    for before, name in zip("a" + NINE, NINE, strict=False):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join(lines)


def merge_bomb() -> str:
    lines = ["a: &a {x: 1}"]
    for before, name in zip("a" + NINE, NINE, strict=False):
        lines.append(f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1e-2\nb: -2E5\nc: 1.5e3", {"a": 0.01, "b": -2e5, "c": 1500.0}),
        ("a: v1e2\nb: 0.5x\nc: '1e2'", {"a": "v1e2", "b": "0.5x", "c": "1e2"}),
        ("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}),
        ("a: &a [0.0, 0.5]\nb: *a", {"a": [0.0, 0.5], "b": [0.0, 0.5]}),
        ('{"json": [true, null]}', {"json": [True, None]}),
    ],
)
def test_what_is_read(text: str, expected: object, tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(text)
    assert read_yaml_mapping(file, "a settings file") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\na: 2", "'a' is there twice in .*line 2"),
        ("a: {b: [{c: 1, c: 1}]}", "'c' is there twice"),
        ("1: 2", "names as keys"),
        ("? [1]\n: 2", "a key must be plain"),
        ("- 1", "holds list"),
        ("", "holds NoneType"),
        ("a: 1\n---\nb: 2", "single document"),
        ("a: [", "must be YAML"),
        ("a: !!python/object/apply:os.system [ls]", "must be YAML"),
        ("a: 2001-99-99", "plain values"),
        ("a: " + "9" * 5000, "plain values"),
        ("a: " + "[" * 1500 + "]" * 1500, "plain values"),
        ("a: &a [*a]", "must not contain itself"),
        (bomb("[x]"), "with those that aliases repeat"),
        (merge_bomb(), "with those that aliases repeat"),
        ("a: b\n" * 60_000, "may have 262,144 bytes"),
        (b"a: \xff\xfe", "must be YAML"),
        (b"a: \x00", "must be YAML"),
    ],
)
def test_what_is_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    begin = time.process_time()
    with pytest.raises(InputError, match=message) as caught:
        read_yaml_mapping(file, "a settings file")
    assert time.process_time() - begin < 15.0
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_no_file(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "is none"), (tmp_path / "nothing", "does not exist")):
        with pytest.raises(InputError, match=message):
            read_yaml_mapping(path, "a settings file")
