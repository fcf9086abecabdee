"""Reads and writes the text that names a model by id, with its data and options: `hf:./my-model?data=texts.csv`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from autocompress.config import TEACHER_LOSSES
from autocompress.errors import InputError

SOURCES = ("hf", "timm", "torchvision")
"""Where an id comes from: the first part of a text such as `hf:./my-model`."""

KINDS = (
    "text-classification",
    "sentence-embedding",
    "causal-lm",
    "image-classification",
)
"""What a model does; the field's pipeline names."""

_PATH_MARKS = (".", "/", "~")
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True)
class TaskId:
    """A model by id with its options; hashable, so that its files are read once a process.

    Attributes:
        source: one of `SOURCES`.
        name: a folder, or a name that the source knows.
        data: a file, a folder or a data set name with labels; see `autocompress.tasks.samples`.
        inputs: the same without labels: the uncompressed model labels them.
        text_column: columns of the texts, with commas where the model reads pairs; by default found by their names.
        label_column: column of the labels; by default found by its name.
        kind: one of `KINDS`; by default what the model's own config says.
        metric: name of a metric, or `package.module:function` of (outputs, targets); by default the kind's.
        teacher_loss: one of `TEACHER_LOSSES`; by default the kind's.
        weights: file of the weights, for models that are built by name.
        max_length: tokens of a text; by default what nearly all texts need.
        n_train: most samples that are trained on.
        n_selection: most samples that each candidate is judged on.
        n_test: most samples that the front is judged on.
        trust_remote_code: run Python code that comes with the model.
    """

    source: str
    name: str
    data: str | None = None
    inputs: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    kind: str | None = None
    metric: str | None = None
    teacher_loss: str | None = None
    weights: str | None = None
    max_length: int | None = None
    n_train: int = 10_000
    n_selection: int = 500
    n_test: int = 2_000
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("kind", KINDS), ("teacher_loss", TEACHER_LOSSES)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, but got {value!r}")
        for name in ("max_length", "n_train", "n_selection", "n_test"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, but got {value}")

    def text(self) -> str:
        """The canonical text, which gives an equal `TaskId` again from any folder: paths are absolute."""
        given = {f.name: getattr(self, f.name) for f in fields(self)[2:] if getattr(self, f.name) != f.default}
        query = urlencode({key: _written(value) for key, value in given.items()}, quote_via=quote, safe="/:,")
        return f"{self.source}:{self.name}" + (f"?{query}" if query else "")


def is_task_id(text: str) -> bool:
    """Whether a task's text names a model by id."""
    return text.partition(":")[0] in SOURCES and ":" in text


def read_task_id(text: str, options: Mapping[str, Any] | None = None) -> TaskId:
    """The id that a text names; paths that exist become absolute.

    Args:
        text: `SOURCE:NAME` or `SOURCE:NAME?OPTION=VALUE&OPTION=VALUE`, options as in `TaskId`.
        options: more options, which win; None values are left out.

    Raises:
        InputError: no such source or option, or a value that does not fit.
    """
    head, _, query = text.partition("?")
    source, _, name = head.partition(":")
    if source not in SOURCES or not name:
        raise InputError(f"an id must be like {' or '.join(f'{s}:NAME' for s in SOURCES)}, but got {text!r}")
    try:
        given: dict[str, Any] = dict(parse_qsl(query, strict_parsing=True, keep_blank_values=True)) if query else {}
    except ValueError:
        raise InputError(f"options of an id must be like ?data=texts.csv&max_length=64, but got {query!r}") from None
    given |= {key: value for key, value in (options or {}).items() if value is not None}
    types = {f.name: f.type for f in fields(TaskId)[2:]}
    for key, value in given.items():
        if key not in types:
            raise InputError(f"an option of an id must be one of {', '.join(types)}, but got {key!r}")
        given[key] = _value(key, value, str(types[key]))
    paths: dict[str, Any] = {key: _absolute(given[key]) for key in ("data", "inputs", "weights") if key in given}
    is_path = source == "hf" or name.startswith(_PATH_MARKS)  # as in transformers, a folder goes before a name
    return replace(TaskId(source, _absolute(name) if is_path else name), **(given | paths))


def _value(key: str, value: Any, kind: str) -> Any:
    if not isinstance(value, str):
        return value
    if kind.startswith("int"):
        try:
            return int(value)
        except ValueError:
            raise InputError(f"option {key} must be a whole number, but got {value!r}") from None
    if kind == "bool":
        if value.lower() not in _FLAGS:
            raise InputError(f"option {key} must be true or false, but got {value!r}")
        return _FLAGS[value.lower()]
    return value


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _absolute(name: str) -> str:
    """The full path of what exists here, or looks like a path; other names as they are."""
    path = Path(name).expanduser()
    return str(path.resolve()) if name.startswith(_PATH_MARKS) or path.exists() else name
