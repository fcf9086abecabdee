"""Finds an extension by its name in a visible dict, or at `package.module:name`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from autocompress.errors import InputError, MissingExtraError
from autocompress.settings_schema import require_kind


def find_extension(what: str, name: str, target: str, known: Iterable[str], extra: str | None = None) -> Any:
    """What the target names.

    Args:
        what: for messages, such as "runtime".
        name: what the user gave.
        target: `package.module:name`: what the dict has for the name, or the name itself.
        known: the dict's names.
        extra: of this package that installs the target's imports, if there is one.

    Raises:
        InputError: it is not of that form, or the module has no such name.
        MissingExtraError: the module, or one that it imports, is not installed or does not import.
    """
    require_kind(what, name, "a text", str)
    module, _, attribute = target.partition(":")
    if not (module and attribute) or module.startswith("."):
        raise InputError(f"{what} must be one of {sorted(known)} or package.module:Class, but got {name!r}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        way_out = f'; `pip install "autocompress[{extra}]"`' if extra else ""
        raise MissingExtraError(
            f"{what} {name!r} cannot be imported: it needs the package {error.name!r}, which is not installed{way_out}"
        ) from error
    except ImportError as error:
        raise MissingExtraError(f"{what} {name!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the module raises
        raise InputError(f"{what} {name!r} cannot be imported: {type(error).__name__}: {error}") from error
