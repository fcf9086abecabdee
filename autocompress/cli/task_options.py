"""Options of a model that is named by id, shared by the commands that take a task."""

from __future__ import annotations

import argparse
from typing import Any

from autocompress.errors import InputError
from autocompress.tasks.identifiers import KINDS, is_task_id, read_task_id

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
