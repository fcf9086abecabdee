"""`autocompress completion`: scripts that a shell takes, with every command and flag."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autocompress.cli import _parser, main
from autocompress.cli.completion import SHELLS


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_names_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in commands())
    assert "latency-budget" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["do"], {"doctor"}),
        (["search", "--latency-b"], {"--latency-budget"}),
        (["completion", ""], set(SHELLS)),
        (["inspect", "fold"], {"folder", "folded.py"}),
        (["status", "fold"], {"folder"}),
    ],
)
def test_bash_offers_what_fits(
    words: list[str],
    offered: set[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("shtab")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folded.py").touch()
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    line = " ".join(f"'{word}'" for word in ["autocompress", *words])
    ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_autocompress autocompress '{words[-1]}' ''"
    done = subprocess.run(
        ["bash", "-c", f'{script}\n{ask}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {word.strip().rstrip("/") for word in done.stdout.split()} == offered


def test_without_the_package_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert 'pip install "autocompress[completion]"' in capsys.readouterr().err
