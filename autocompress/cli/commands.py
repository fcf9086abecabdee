"""Helpers of the commands: the command itself, flags from the declared settings, and options of models by id."""

from __future__ import annotations

import argparse
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from autocompress.config import SearchSettings
from autocompress.errors import InputError
from autocompress.settings_schema import Declared
from autocompress.tasks.identifiers import KINDS, is_task_id, read_task_id


def add_command(commands: Any, name: str, function: Callable[..., None], text: str) -> argparse.ArgumentParser:
    """A command that calls `function` with its arguments by name; `text` is its line of help."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=function)
    return parser


def add_settings(command: argparse.ArgumentParser, settings: Iterable[Declared]) -> None:
    """Adds a flag for each setting; a flag that is not given is None."""
    for declared in settings:
        kind, help_text = _plain(declared.kind), declared.setting.help
        if declared.default not in (None, ()) and "default:" not in help_text:
            help_text += f" (default: {_as_text(declared.default)})"
        options: dict[str, Any] = {"dest": _dest(declared), "default": None, "help": help_text.replace("%", "%%")}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = declared.setting.metavar or declared.flags[0][2:].replace("-", "_").upper()
            options["type"] = _list_of(typing.get_args(kind)[0]) if typing.get_origin(kind) is tuple else kind
        command.add_argument(*declared.flags, **options)


def add_json(command: argparse.ArgumentParser) -> None:
    """Adds `--json`; the command gets it as `as_json`."""
    command.add_argument(
        "--json",
        dest="as_json",
        action="store_true",
        help="print one JSON object (see docs/agents.md) in place of text",
    )


def print_json(data: Any) -> None:
    """Prints plain values as JSON; figures that are not known are null."""
    from autocompress.results.records import without_nan

    print(json.dumps(without_nan(data), indent=1, allow_nan=False))


def add_trust(command: argparse.ArgumentParser) -> None:
    """Adds the flag of the commands that import what a run's files name."""
    command.add_argument(
        "--trust",
        action="store_true",
        help="import the code that the run names (task, sampler, runtime, ...) although somebody else made the run",
    )


def given_settings(flags: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a file with those of the flags that were given on top, as `SearchSettings.from_dict` takes them.

    Args:
        flags: values by the names that `add_settings` gave them.
        file: what a settings file holds.

    Raises:
        InputError: a value of the file that a flag replaces is wrong; nobody would look at it afterwards.
    """
    settings = dict(file or {})
    for dest, value in flags.items():
        part, _, name = dest.rpartition(".")
        if value is None:
            continue
        if part:
            inner = settings.get(part, {})
            if isinstance(inner, Mapping) and name in inner:
                SearchSettings.from_dict({part: {name: inner[name]}})
            settings[part] = {**inner, name: value} if isinstance(inner, Mapping) else inner
        else:
            if name in settings:
                SearchSettings.from_dict({name: settings[name]})
            settings[name] = value
    return settings


def _dest(declared: Declared) -> str:
    return f"{declared.part}.{declared.name}" if declared.part else declared.name


def _plain(kind: Any) -> Any:
    """The type without None."""
    if isinstance(kind, types.UnionType):
        return next(option for option in typing.get_args(kind) if option is not types.NoneType)
    return kind


def _as_text(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def read(text: str) -> list[Any]:
        try:
            return [kind(part.strip()) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"whole numbers with commas like 0,20,60, but got {text!r}") from None

    return read


_NAMES = (
    "data",
    "inputs",
    "text_column",
    "label_column",
    "kind",
    "metric",
    "weights",
    "max_length",
    "n_train",
    "n_selection",
    "n_test",
    "trust_remote_code",
)


def add_task_options(command: argparse.ArgumentParser) -> None:
    """Adds what says how a model by id is used."""
    group = command.add_argument_group("models by id (hf:..., timm:..., torchvision:...)")
    group.add_argument("--data", help="labelled data: CSV, Parquet, JSONL, a folder of classes, a data set's name")
    group.add_argument("--inputs", help="data without labels, which the uncompressed model labels")
    group.add_argument("--text-column", metavar="NAME", help="column of the texts; two with a comma for pairs")
    group.add_argument("--label-column", metavar="NAME", help="column of the labels")
    group.add_argument("--kind", choices=KINDS, help="what the model does (default: what its config says)")
    group.add_argument("--metric", help="accuracy, f1, auc, log_loss, ... or package.module:function")
    group.add_argument("--weights", metavar="FILE", help="weights of a model that is built by name")
    group.add_argument("--max-length", type=int, help="tokens of a text (default: what 99%% of the texts need)")
    group.add_argument("--n-train", type=int, metavar="N", help="most samples to train on (default: 10000)")
    group.add_argument("--n-selection", type=int, metavar="N", help="most samples to judge trials on (default: 500)")
    group.add_argument("--n-test", type=int, metavar="N", help="most samples to judge the front on (default: 2000)")
    group.add_argument(
        "--trust-remote-code", action="store_true", default=None, help="run Python code that comes with the model"
    )


def take_task(task: str, flags: dict[str, Any]) -> str:
    """The text of the task with its options, which are taken out of `flags`.

    Raises:
        InputError: options for a task that is no id.
    """
    given = {name: flags.pop(name, None) for name in _NAMES}
    given = {name: value for name, value in given.items() if value is not None}
    if is_task_id(task):
        return read_task_id(task, given).text()
    if given:
        first = next(iter(given)).replace("_", "-")
        raise InputError(f"--{first} is for models by id, such as hf:./my-model, but the task is {task!r}")
    return task
