"""Each command in the documentation is one that the command line, the Makefile or the extras know."""

from __future__ import annotations

import argparse
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from autocompress.cli import _parser
from tests.docs.markdown import PAGES, ROOT, blocks, inline_code, name_of

SHELL = ("", "bash", "console")
OTHERS = {"kubectl", "optuna-dashboard", "python", "python3", "ray", "sbatch"}
"""First words of commands that are not ours."""

PARSER = _parser()
COMMANDS: dict[str, argparse.ArgumentParser] = next(
    dict(action.choices) for action in PARSER._actions if isinstance(action, argparse._SubParsersAction)
)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])


def lines(text: str) -> Iterator[list[str]]:
    """The words of each command of a block; comments are left out, and lines that end in a backslash are joined."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words:
            yield words


def check(words: list[str]) -> None:
    """Fails where a command does not exist or does not take its words."""
    if "autocompress" in words[1:] and "--" in words:  # ray job submit ... -- autocompress ...
        words = words[words.index("--") + 1 :]
    if words[0] == "autocompress":
        PARSER.parse_args(words[1:])
        check_flags(words)  # the parser also takes their beginnings
    elif words[0] == "make":
        assert set(words[1:]) <= TARGETS, f"no such target: {words}"
    elif words[:2] == ["pip", "install"]:
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
            assert set(extra.split(",")) <= EXTRAS, f"no such extra: {words}"
    else:
        assert words[0] in OTHERS, f"what is {words[0]!r}? mark the block as text, or add it to OTHERS"


def check_flags(words: list[str]) -> None:
    """Fails where a command has no such flag."""
    known = {flag for action in COMMANDS[words[1]]._actions for flag in action.option_strings}
    flags = {word.partition("=")[0] for word in words[2:] if word.startswith("-")}
    assert flags <= known, f"no such flag: {sorted(flags - known)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(page):
        for words in lines(block.text) if block.language in SHELL else ():
            try:
                check(words)
            except (AssertionError, SystemExit) as error:
                pytest.fail(f"{block}: {shlex.join(words)}: {error} {capsys.readouterr().err.splitlines()[-1:]}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_within_the_text_exist(page: Path) -> None:
    for code in inline_code(page):
        words = code.split()
        if len(words) < 2 or words[0] != "autocompress" or not words[1].isidentifier() or not words[1].islower():
            continue
        assert words[1] in COMMANDS, code
        check_flags(words)


def test_wrong_commands_are_found() -> None:
    for wrong in ("autocompress serach digits", "autocompress pick run --nee -o x", "autocompress search"):
        with pytest.raises(SystemExit):
            check(shlex.split(wrong))
    for wrong in ("autocompress pick run --kne -o x", "make no-such-target", "pip install '.[nothing]'", "rm -rf x"):
        with pytest.raises(AssertionError):
            check(shlex.split(wrong))
