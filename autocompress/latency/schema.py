"""Checks that a JSON file holds what a type says, and finds the line of what does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from autocompress.errors import InputError
from autocompress.settings_schema import shown

_MAX_TEXT = 2**19
Place = tuple[str | int, ...]
"""Keys and indices that lead from the top of a JSON document to a value."""


class DamageError(Exception):
    """A value that is not what its place asks for.

    Args:
        place: of the value.
        rule: what must hold there, and what is there instead.
    """

    def __init__(self, place: Place, rule: str) -> None:
        super().__init__(rule)
        self.place, self.rule = place, rule

    def at_line(self, path: Path) -> InputError:
        """The error to show: names the file, the line, the place and the rule."""
        line = _line(path.read_text(encoding="utf-8"), self.place)
        where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.place).lstrip(".")
        return InputError(
            f"{path}, line {line}: `{where}` {self.rule}; the file was edited or is damaged, make it again"
        )


def check_type(kind: Any, value: object, place: Place) -> None:
    """Refuses a JSON value that is not of a type: numbers, text, dataclasses, lists for tuples, mappings, unions.

    Raises:
        DamageError: it is not; names the innermost wrong place.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    if origin is UnionType:
        if not (value is None and NoneType in args):
            check_type(next(arg for arg in args if arg is not NoneType), value, place)
    elif is_dataclass(kind):
        _check_fields(kind, value, place)
    elif origin is tuple:
        _require(isinstance(value, list), "a list", value, place)
        kinds = [args[0]] * len(value) if args[-1] is ... else list(args)  # type: ignore[arg-type]
        _require(len(kinds) == len(value), f"a list of {len(kinds)}", value, place)  # type: ignore[arg-type]
        for i, (item_kind, item) in enumerate(zip(kinds, value, strict=True)):  # type: ignore[call-overload]
            check_type(item_kind, item, (*place, i))
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        _require(isinstance(value, dict), "a mapping", value, place)
        for key, item in value.items():  # type: ignore[attr-defined]
            check_type(args[1], item, (*place, key))
    else:
        _check_plain(kind, value, place)


def check_positive(value: object, place: Place) -> None:
    """Refuses what is no positive number.

    Raises:
        DamageError: it is none.
    """
    _check_plain(float, value, place)
    _require(value > 0, "a positive number", value, place)  # type: ignore[operator]


def _check_fields(kind: Any, value: object, place: Place) -> None:
    _require(isinstance(value, dict), "a mapping", value, place)
    assert isinstance(value, dict)
    names, hints = [item.name for item in fields(kind)], get_type_hints(kind)
    odd = sorted(set(value) ^ set(names))
    if odd:
        raise DamageError(place, f"must have the keys {', '.join(names)}, but {odd[0]!r} is missing or too many")
    for name in names:
        check_type(hints[name], value[name], (*place, name))


def _check_plain(kind: type, value: object, place: Place) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is float:
        _require(is_number, "a number", value, place)
    elif kind is int:
        _require(is_number and isinstance(value, int) and value >= 0, "a whole number of at least 0", value, place)
    else:
        _require(isinstance(value, kind), {"str": "text", "bool": "true or false"}[kind.__name__], value, place)


def _require(holds: bool, rule: str, value: object, place: Place) -> None:
    if not holds:
        raise DamageError(place, f"must be {rule}, but is {shown(value)}")


def _line(text: str, place: Place) -> int:
    """The line of a value, from 1: JSON is YAML, whose reader keeps the lines; 1 where it cannot tell."""
    if len(text) > _MAX_TEXT:
        return 1  # it would take minutes
    try:
        node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):  # JSON may hold characters that YAML does not
        return 1
    for step in place:
        if isinstance(node, yaml.MappingNode):
            inner = next((value for key, value in node.value if key.value == str(step)), None)
        else:
            inner = node.value[step] if isinstance(node, yaml.SequenceNode) else None
        if inner is None:
            break
        node = inner
    return int(node.start_mark.line) + 1
