"""Scratch folders: removed at the end; those of killed processes by the next; those in use by nobody."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from autocompress.locked_temp_dir import MARKER, LockedTempDir

HOLD = """
import time
from autocompress.locked_temp_dir import LockedTempDir
scratch = LockedTempDir()
print(scratch.path, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_it_is_there_and_then_it_is_not() -> None:
    with LockedTempDir() as scratch:
        (scratch.path / "file").write_text("x")
        other = LockedTempDir()
        assert scratch.path.is_dir() and other.path != scratch.path
    assert not scratch.path.exists()
    other.close()
    other.close()


def test_a_killed_process_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    path = Path(holder.stdout.readline().strip())
    (tmp_path / "autocompress-of-somebody-else").mkdir()
    with LockedTempDir():
        assert path.is_dir(), "its owner lives"
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
        assert path.is_dir()
        with LockedTempDir():
            assert not path.exists()
    assert [found.name for found in tmp_path.iterdir()] == ["autocompress-of-somebody-else"]


def _a_run(folder: Path) -> None:
    (folder / ".lock").write_text("process 1 on host")
    (folder / "run.json").write_text("{}")


def _of_another_text(folder: Path) -> None:
    (folder / MARKER).write_text("my notes")


def _linked_marker(folder: Path) -> None:
    target = folder / "target"
    target.write_text("A scratch folder of autocompress: removed when the process that made it has ended.\n")
    (folder / MARKER).symlink_to(target)


def _nested(folder: Path) -> None:
    with LockedTempDir(folder) as scratch:
        scratch.path.joinpath(MARKER).rename(folder / "sub")


@pytest.mark.parametrize("fill", [lambda folder: None, _a_run, _of_another_text, _linked_marker, _nested])
def test_nothing_but_marked_scratch_is_ever_removed(tmp_path: Path, fill: Callable[[Path], None]) -> None:
    mine = tmp_path / "autocompress-run"
    mine.mkdir()
    fill(mine)
    before = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    with LockedTempDir(), LockedTempDir():
        pass
    assert {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()} == before
    assert mine.is_dir()


def test_a_link_to_scratch_is_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "elsewhere"
    with LockedTempDir() as scratch:
        shutil.copytree(scratch.path, kept)
    (tmp_path / "autocompress-link").symlink_to(kept)
    with LockedTempDir():
        pass
    assert (kept / MARKER).is_file()


def test_other_users_cannot_look_into_it() -> None:
    with LockedTempDir() as scratch:
        assert scratch.path.stat().st_mode & 0o777 == 0o700
