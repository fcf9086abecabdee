"""How settings are declared and checked: name, type, default, rule and help in one place, for all doors."""

from __future__ import annotations

import difflib
import math
import reprlib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from autocompress.errors import InputError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Setting:
    """The declaration of a setting, besides its name, type and default.

    Attributes:
        help: one sentence; it explains the default where the value does not.
        rule: text of the check, as in "n_trials >= 1"; "" for none.
        holds: the check, of a value that is not None.
        flag: of the command line, without its dashes; None is the name with dashes.
        alias: a second flag, without its dashes.
        changeable: whether `resume` takes another value: it does not decide what a trial's numbers mean.
        metavar: what stands for the value in `--help`.
    """

    help: str
    rule: str = ""
    holds: Callable[[Any], bool] = lambda value: True
    flag: str | None = None
    alias: str | None = None
    changeable: bool = False
    metavar: str | None = None


def declare(default: Any, text: str, rule: str = "", holds: Callable[[Any], bool] | None = None, **more: Any) -> Any:
    """A dataclass field with its `Setting`; a class as default is called for each instance."""
    setting = Setting(text, rule, holds or (lambda value: True), **more)
    if isinstance(default, type):
        return field(default_factory=default, metadata={"setting": setting})
    return field(default=default, metadata={"setting": setting})


class CheckedSettings:
    """Checks the types and the rules of a dataclass of settings when one is made."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = _typed(item.name, types_of(type(self))[item.name], getattr(self, item.name))
            object.__setattr__(self, item.name, value)
            setting = setting_of(item)
            if value is not None and not setting.holds(value):
                raise InputError(f"`{setting.rule}` must hold, but got {shown(value)}")
        self._check()

    def _check(self) -> None:
        """Checks rules between settings."""


def setting_of(item: Any) -> Setting:
    """The declaration of a settings field."""
    found: Setting = item.metadata["setting"]
    return found


@dataclass(frozen=True)
class Declared:
    """One plain setting as all doors see it.

    Attributes:
        part: "" for a setting of the search itself, else "distill" or "quantize".
        name: of the setting.
        kind: its type.
        default: its default.
        setting: the rest of the declaration.
    """

    part: str
    name: str
    kind: Any
    default: Any
    setting: Setting

    @property
    def flags(self) -> tuple[str, ...]:
        """Of the command line, with their dashes."""
        names = (self.setting.flag or self.name.replace("_", "-"), self.setting.alias)
        return tuple(f"--{name}" for name in names if name)


def declared_in(settings: type) -> Iterator[Declared]:
    """Every plain setting of a class of settings in order, those of settings inside it last."""
    parts: list[tuple[str, type]] = [("", settings)]
    for part, kind in parts:
        for item in fields(kind):
            inner = types_of(kind)[item.name]
            if is_dataclass(inner):
                parts.append((item.name, inner))  # type: ignore[arg-type]  # a class, not an instance
            else:
                default = item.default if item.default is not MISSING else None
                yield Declared(part, item.name, inner, default, setting_of(item))


def types_of(kind: Any) -> dict[str, Any]:
    """The types of a class's fields."""
    return typing.get_type_hints(kind)


def _typed(name: str, kind: Any, value: Any) -> Any:
    """The value if it is of the type; whole numbers pass for floats, lists for tuples, mappings for settings.

    Raises:
        InputError: it is of another type, or a number that is not finite.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in inner if option is not types.NoneType)
        return _typed(name, kind, value)
    if is_dataclass(kind):
        if isinstance(value, kind):  # type: ignore[arg-type]  # a class, not an instance
            return value
        if isinstance(value, Mapping):
            return from_mapping(kind, name, value)  # type: ignore[arg-type]
        raise InputError(f"{name} must be a mapping of settings, but got {shown(value)}")
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_typed(f"each of {name}", inner[0], item) for item in value)
        raise InputError(f"{name} must be a list, but got {shown(value)}")
    if kind is float and isinstance(value, str) and _is_number(value):
        value = float(value)  # YAML 1.1 reads 1e-2 as a text
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise InputError(f"{name} must be a finite number, but got {value}")
        return float(value)
    if type(value) is kind:
        return value
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    raise InputError(f"{name} must be {words[kind]}, but got {shown(value)}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_MAX_SHOWN = 80
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlong, _REPR.maxstring, _REPR.maxother = 3, _MAX_SHOWN, _MAX_SHOWN, _MAX_SHOWN
_REPR.maxlist = _REPR.maxdict = _REPR.maxset = _REPR.maxtuple = 10


def shown(value: object) -> str:
    """At most 80 characters of a value, also where its text would be endless."""
    if isinstance(value, int) and value.bit_length() > _MAX_SHOWN * 3:
        return f"a number of {value.bit_length()} bits"  # Python refuses to write out thousands of digits
    text = _REPR.repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def require_kind(what: str, value: object, words: str, *kinds: type) -> None:
    """Refuses an argument of another type.

    Raises:
        InputError: it is none of the kinds.
    """
    if not isinstance(value, kinds):
        raise InputError(f"{what} must be {words}, but got {shown(value)}")


def require_count(what: str, value: object) -> None:
    """Refuses what is no whole number of at least 1.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"`{what} >= 1` must hold and be whole, but got {shown(value)}")


def from_mapping(kind: type[_T], what: str, data: Mapping[str, Any]) -> _T:
    """Settings from plain values.

    Args:
        kind: a dataclass of settings.
        what: its name in messages.
        data: values by name; those left out are the defaults.

    Raises:
        InputError: an unknown key, a value of another type, or one that breaks a rule.
    """
    refuse_unknown_keys(what, data, list(types_of(kind)))
    return kind(**data)


def refuse_unknown_keys(what: str, data: Mapping[str, Any], known: list[str]) -> None:
    """Raises an InputError that names the unknown keys and the nearest known ones."""
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(known)}"
            raise InputError(f"{what} has no key {key!r}; {hint}")
