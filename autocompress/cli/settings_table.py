"""Prints the table of all settings, which is `docs/settings.md`: `python -m autocompress.cli.settings_table`."""

from __future__ import annotations

import types
import typing
from typing import Any

from autocompress.config import SearchSettings
from autocompress.settings_schema import Declared, declared_in

_HEAD = """\
# Settings

Each setting has one name for `autocompress.search(...)`, for the keys of a `--config` file and for the flags of the
command line. Those marked "resume" may be changed by `autocompress resume`. Settings of the fine-tune are keys of
`distill`, those of the grids of rounded layers keys of `quantize`.

| setting | flag | type | default | resume | meaning |
| --- | --- | --- | --- | --- | --- |
"""


def settings_table() -> str:
    """Markdown: a row for each setting."""
    return _HEAD + "".join(map(_row, declared_in(SearchSettings)))


def _row(declared: Declared) -> str:
    setting = declared.setting
    name = f"{declared.part}.{declared.name}" if declared.part else declared.name
    default = "" if declared.default in (None, ()) else f"`{_text(declared.default)}`"
    rule = f" (`{setting.rule}`)" if setting.rule else ""
    cells = (
        f"`{name}`",
        f"`{declared.flags[0]}`",
        _type_name(declared.kind),
        default,
        "yes" if setting.changeable else "",
        f"{setting.help}{rule}".replace("|", "\\|"),
    )
    return f"| {' | '.join(cells)} |\n"


def _text(default: Any) -> str:
    return str(list(default) if isinstance(default, tuple) else default)


def _type_name(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_type_name(option) for option in typing.get_args(kind) if option is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        return f"list of {_type_name(typing.get_args(kind)[0])}"
    return str(kind.__name__)


if __name__ == "__main__":
    print(settings_table(), end="")
