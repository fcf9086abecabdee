"""Declared settings: types, rules, nested settings, flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from autocompress.errors import InputError
from autocompress.settings_schema import CheckedSettings, declare, declared_in, from_mapping, shown


@dataclass(frozen=True)
class Inner(CheckedSettings):
    rate: float = declare(0.5, "a rate", "0 < rate", lambda value: value > 0)


@dataclass(frozen=True)
class Outer(CheckedSettings):
    n: int = declare(3, "a number", "n >= 1", lambda value: value >= 1, flag="count", alias="n")
    name: str | None = declare(None, "a name")
    steps: tuple[int, ...] = declare((), "steps")
    on: bool = declare(False, "a switch")
    inner: Inner = declare(Inner, "settings inside")


def test_values_become_the_declared_types() -> None:
    found = from_mapping(Outer, "settings", {"n": 2, "steps": [1, 2], "inner": {"rate": "1e-2"}})
    assert found == Outer(n=2, steps=(1, 2), inner=Inner(rate=0.01))
    assert type(Outer(inner=Inner(rate=1)).inner.rate) is float


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": 0}, "`n >= 1` must hold, but got 0"),
        ({"n": 1.0}, "n must be a whole number, but got 1.0"),
        ({"n": True}, "n must be a whole number, but got True"),
        ({"on": 1}, "on must be true or false, but got 1"),
        ({"name": 3}, "name must be a text, but got 3"),
        ({"steps": [1, "2"]}, "each of steps must be a whole number, but got '2'"),
        ({"steps": 1}, "steps must be a list, but got 1"),
        ({"inner": {"rate": float("inf")}}, "rate must be a finite number, but got inf"),
        ({"inner": 0.1}, "inner must be a mapping of settings, but got 0.1"),
        ({"inner": {"rat": 0.1}}, "inner has no key 'rat'; did you mean rate?"),
        ({"zzz": 1}, "settings has no key 'zzz'; known keys: n, name, steps, on, inner"),
    ],
)
def test_bad_values_name_the_rule_and_the_value(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        from_mapping(Outer, "settings", given)
    assert str(caught.value).startswith(message)


def test_every_plain_setting_is_declared_once() -> None:
    found = {(item.part, item.name): item for item in declared_in(Outer)}
    assert list(found) == [("", "n"), ("", "name"), ("", "steps"), ("", "on"), ("inner", "rate")]
    assert found["", "n"].flags == ("--count", "--n") and found["", "n"].default == 3
    assert found["inner", "rate"].flags == ("--rate",) and found["inner", "rate"].kind is float


def test_long_values_are_cut() -> None:
    assert "..." in shown("x" * 200) and len(shown("x" * 200)) <= 80
    assert shown(list(range(100))).endswith("...]")
    assert shown((1, 2)) == "[1, 2]"
