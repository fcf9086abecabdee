"""Checks that what was read from a file has the types that its dataclass declares."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal

from autocompress.settings_schema import shown, types_of

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "a list",
    Mapping: "a mapping",
    types.NoneType: "null",
}


def require_types(value: object, kind: Any) -> None:
    """Refuses a value that is not of a type: plain ones, unions, literals, tuples, mappings and dataclasses of them.

    A whole number passes for a float; NaN is a float.

    Raises:
        TypeError: it is not; says where inside, which type is wanted and what is there.
    """
    place = _wrong_place(value, kind)
    if place is not None:
        path, wanted, found = place
        raise TypeError(f"{path.lstrip('.') or 'it'} must be {wanted}, but is {shown(found)}")


_Wrong = tuple[str, str, object]


def _wrong_place(value: object, kind: Any) -> _Wrong | None:
    """Where a value is not of the type, what is wanted there and what is there; None where all fits."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return None
    if origin in (types.UnionType, typing.Union):
        wrong = [_wrong_place(value, option) for option in args]
        if None in wrong:
            return None
        return max((item for item in wrong if item is not None), key=lambda item: len(item[0]))
    if origin is Literal:
        return None if value in args else ("", f"one of {list(args)}", value)
    if is_dataclass(kind):
        if not isinstance(value, kind):  # type: ignore[arg-type]  # a class, not an instance
            return "", f"a {kind.__name__}", value  # type: ignore[union-attr]
        inner = ((f".{name}", getattr(value, name), own) for name, own in _fields_of(type(value)))
    elif origin is tuple and isinstance(value, tuple):
        inner = ((f"[{i}]", item, args[0]) for i, item in enumerate(value))
    elif _is_mapping(origin) and isinstance(value, Mapping):
        if any(type(key) is not args[0] for key in value):
            return "", f"a mapping whose keys are {_WORDS[args[0]]}", value
        inner = ((f".{key}", item, args[1]) for key, item in value.items())
    elif origin is frozenset and isinstance(value, frozenset):
        inner = (("", item, args[0]) for item in value)
    elif origin is None and isinstance(value, (int, float) if kind is float else kind):
        return ("", _WORDS[kind], value) if isinstance(value, bool) and kind in (int, float) else None
    else:
        return "", _WORDS.get(Mapping if _is_mapping(origin) else origin or kind, str(kind)), value
    for step, item, item_kind in inner:
        wrong_inside = _wrong_place(item, item_kind)
        if wrong_inside is not None:
            return f"{step}{wrong_inside[0]}", *wrong_inside[1:]
    return None


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


@cache
def _fields_of(kind: Any) -> tuple[tuple[str, Any], ...]:
    hints = types_of(kind)
    return tuple((item.name, hints[item.name]) for item in fields(kind))
