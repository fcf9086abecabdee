"""Atomic writes, JSON and digests."""

import hashlib
from pathlib import Path

import pytest

from autocompress.errors import InputError
from autocompress.files import digest_of, read_json, write_atomically


def test_a_write_replaces_the_file_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    write_atomically(path, "é")
    assert path.read_bytes() == "é".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("autocompress.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "must exist"),
        (b'{"a": 1,\n "b"', "line 2 is not JSON"),
        (b"\xff", "UTF-8"),
        (b"[1]", "JSON object, but it holds list"),
    ],
)
def test_damage_names_the_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_json(path, "plan")
    assert str(path) in str(caught.value)


def test_a_written_object_is_read_back(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", '{"a": [1, 2]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, 2]}


@pytest.mark.parametrize("content", ["ä", b"\x00\x01"])
def test_digests_are_sha256(content: str | bytes) -> None:
    whole = hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
    assert digest_of(content) == whole
    assert digest_of(content, 12) == whole[:12]
