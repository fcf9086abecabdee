"""Scratch folders: removed at the end; those of killed processes by the next; those in use by nobody."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from autocompress.execution.locked_temp_dir import LockedTempDir

HOLD = """
import time
from autocompress.execution.locked_temp_dir import LockedTempDir
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
