"""The command that prints a script for a shell, which then completes commands, flags and paths: completion."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from autocompress.cli.commands import add_command

SHELLS = ("bash", "zsh", "fish")


def add_commands(commands: Any) -> None:
    """Adds completion."""
    text = 'print a completion script; in bash: eval "$(autocompress completion bash)"'
    completion = add_command(commands, "completion", _completion, text)
    completion.add_argument("shell", choices=SHELLS)


def _completion(shell: str) -> None:
    from autocompress.cli import _parser
    from autocompress.errors import MissingExtraError

    try:
        import shtab
    except ImportError as error:
        raise MissingExtraError('completion needs shtab: `pip install "autocompress[completion]"`') from error
    parser = _parser()
    _complete_paths(parser, shtab)
    print(shtab.complete(parser, shell))


def _complete_paths(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Lets arguments that are paths be completed, those that are runs by folders."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete_paths(inner, shtab)
        elif action.type is Path or action.dest in ("task", "data", "inputs", "weights"):
            action.complete = shtab.DIRECTORY if action.dest == "run_dir" else shtab.FILE  # type: ignore[attr-defined]
