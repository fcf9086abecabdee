"""What every command of the command line is made with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_command(commands: Any, name: str, function: Callable[..., None], text: str) -> argparse.ArgumentParser:
    """A command that calls `function` with its arguments by name; `text` is its line of help."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.set_defaults(command=function)
    return parser
