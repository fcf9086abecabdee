"""Prints the reference of the command line, which is `docs/cli.md`: `make docs-pages`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from autocompress.cli import _parser

_HEAD = """\
# Command line

This page is made from the argument parser by `make docs-pages`. `autocompress COMMAND --help` prints the same.
[settings.md](settings.md) lists the settings of a search with their types and rules.

A `TASK` is a ready-made name, `file.py:name`, `package.module:name` or a [model by id](guides/models_by_id.md).
A budget is a share of the uncompressed model's latency (`0.5x`) or milliseconds (`2.0ms`).

Exit codes: 0; 2 when something that was given is wrong, or the system refuses something; 128 and the number of the
signal that stopped the command (130 after Ctrl-C).
"""

_SHARED = "models by id"
"""Title of the options that several commands share; they have a section of their own."""


def cli_page() -> str:
    """Markdown: a section for each command with a table of its options, then those that commands share."""
    found = commands()
    shared = {a.dest: a for parser, _ in found.values() for a in _shared(parser)}
    sections = "".join(_section(name, *pair) for name, pair in found.items())
    return f"{_HEAD}{sections}\n## Options of models by id\n{_table(shared.values())}"


def commands() -> dict[str, tuple[argparse.ArgumentParser, str]]:
    """Each command's parser and line of help, by its name."""
    (action,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    lines = {choice.dest: choice.help or "" for choice in action._choices_actions}
    return {name: (parser, lines[name]) for name, parser in action.choices.items()}


def _shared(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    groups = (group for group in parser._action_groups if (group.title or "").startswith(_SHARED))
    return [action for group in groups for action in group._group_actions]


def _section(name: str, parser: argparse.ArgumentParser, line: str) -> str:
    shared = _shared(parser)
    actions = [a for a in parser._actions if not isinstance(a, argparse._HelpAction) and a not in shared]
    options = [action for action in actions if action.option_strings]
    words = ["autocompress", name, *(_value(action) for action in actions if not action.option_strings)]
    words += [f"{_shortest(action)} {_value(action)}" for action in options if action.required]
    usage = " ".join([*words, "[options]"] if options else words)
    also = "\nAnd the [options of models by id](#options-of-models-by-id).\n" if shared else ""
    explained = [action for action in actions if action.option_strings or action.help or action.choices]
    return f"\n## `{name}`\n\n{line[0].upper()}{line[1:]}.\n\n```text\n{usage}\n```\n{_table(explained)}{also}"


def _table(actions: Iterable[argparse.Action]) -> str:
    rows = [f"| {_flags(action)} | {_meaning(action)} |\n" for action in actions]
    return "".join(["\n| argument | meaning |\n| --- | --- |\n", *rows]) if rows else ""


def _shortest(action: argparse.Action) -> str:
    return min(action.option_strings, key=len)


def _value(action: argparse.Action) -> str:
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return f"{name}..." if action.nargs in ("+", "*") else name


def _flags(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {_value(action)}"
    return "<br>".join(f"`{name}{value}`" for name in action.option_strings) or f"`{_value(action)}`"


def _meaning(action: argparse.Action) -> str:
    text = (action.help or "") % vars(action)
    choices = ", ".join(map(str, action.choices or ()))
    needed = " (needed)" if action.required and action.option_strings else ""
    return (": ".join(filter(None, (text, choices))) + needed).replace("|", "\\|")


if __name__ == "__main__":
    print(cli_page(), end="")
