"""What each single choice costs, read from the search's `sensitivity.json` and laid out as a map."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1


def sensitivity_map(file: Path, order: Sequence[str]) -> dict[str, Any] | None:
    """Rows in network order, a column for each knob and value; None where the search measured nothing of the kind.

    A damaged file is left out with a warning: the page does not depend on it.

    Args:
        file: `sensitivity.json`.
        order: layer paths in network order; other names follow.

    Returns:
        `unit`, `baseline_loss`, `columns` as [knob, value], and `rows` as [name, [increase of the loss or None, ...]].
    """
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA_VERSION:
            raise ValueError(f"schema {data['schema']!r}, but this version reads {SCHEMA_VERSION}")
        found = {
            (str(choice["name"]), str(choice["knob"]), _text(choice["value"])): _loss(choice["loss_increase"])
            for choice in data["choices"]
        }
        unit, baseline = str(data.get("unit", "")), float(data["baseline_loss"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(f"{file} cannot be read and is left out: {error!r}", stacklevel=2)
        return None
    return {"unit": unit, "baseline_loss": baseline if math.isfinite(baseline) else None, **_laid_out(found, order)}


def _laid_out(found: Mapping[tuple[str, str, str], float], order: Sequence[str]) -> dict[str, Any]:
    place = {name: i for i, name in enumerate(order)}
    names = sorted({name for name, _, _ in found}, key=lambda name: (place.get(name, len(place)), name))
    columns = sorted({(knob, value) for _, knob, value in found}, key=lambda column: (column[0], _number(column[1])))
    cells = [[found.get((name, knob, value)) for knob, value in columns] for name in names]
    rows = [
        [name, [c if c is not None and math.isfinite(c) else None for c in row]]
        for name, row in zip(names, cells, strict=True)
    ]
    return {"columns": [list(column) for column in columns], "rows": rows}


def _loss(value: float | None) -> float:
    """JSON has no NaN: a loss that is null was one."""
    return math.nan if value is None else float(value)


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(text: str) -> tuple[float, str]:
    """Sorts numbers by size, and text such as "2:4" after them."""
    try:
        return float(text), text
    except ValueError:
        return math.inf, text
