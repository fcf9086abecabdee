"""Reads the two files that travel between this machine and a device: the plan there, and the measurements back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import InputError
from autocompress.files import path_inside, read_json

MEASURABLE = ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "openvino")
"""Runtimes whose files can be measured without torch."""


def read_plan(path: Path) -> dict[str, Any]:
    """What is to be measured in a folder; every name leads to a file in the folder itself.

    Raises:
        InputError: there is no plan, it was edited, or its runtime cannot be measured alone.
    """
    plan = read_json(path, "plan")
    kinds = {"digest": str, "runtime": str, "n_threads": int, "batch": int, "reference": str, "files": list}
    plan = {"pieces": {}, "candidates": {}, **plan}
    kinds |= {"pieces": dict, "candidates": dict}
    for key, kind in kinds.items():
        if type(plan.get(key)) is not kind:
            raise InputError(f"{path} is damaged: its {key!r} must be a {kind.__name__}; write the plan again")
    weights = plan.get("weights") or {"file": "-", "n_bytes": 0}
    if not isinstance(weights, dict) or type(weights.get("n_bytes")) is not int or weights["n_bytes"] < 0:
        raise InputError(f"{path} is damaged: its weights must have a number of bytes; write the plan again")
    names = (plan["reference"], weights.get("file"), *plan["files"], *plan["pieces"].values(), *plan["candidates"])
    for name in names:
        path_inside(path.parent, name)
    if plan["runtime"] not in MEASURABLE:
        raise InputError(
            f"the runtime must be one of {sorted(MEASURABLE)} to be profiled alone, but got {plan['runtime']!r}"
        )
    if plan["n_threads"] < 1 or plan["batch"] < 1:
        raise InputError(f"{path} is damaged: `n_threads >= 1` and `batch >= 1` must hold; write the plan again")
    return plan


def read_results(path: Path) -> dict[str, Any]:
    """What a device measured.

    Raises:
        InputError: missing, damaged, or its figures are no positive numbers.
    """
    results = read_json(path, "measurements")
    texts = ("plan", "runtime", "version", "started")
    device, measured, reference = (results.get(key) for key in ("device", "measured", "reference_ms"))
    whole = (
        all(type(results.get(key)) is str for key in texts)
        and isinstance(device, dict)
        and isinstance(measured, dict)
        and _are_positive(reference)
        and (reference or not measured)
        and all(map(_are_figures, measured.values()))
    )
    if not whole:
        raise InputError(f"{path} is damaged: it is not what a device writes; measure again")
    return results


def _are_figures(figures: object) -> bool:
    if not isinstance(figures, dict) or not {"ratio", "spread", "reference_ms"} <= set(figures):
        return False
    lists = [figures[key] for key in ("ratio", "spread", "reference_ms")]
    if not (_are_positive(lists[0]) and _are_positive(lists[1], zero_too=True) and _are_positive(lists[2])):
        return False
    return len({len(values) for values in lists}) == 1 and len(lists[0]) > 0


def _are_positive(values: object, zero_too: bool = False) -> bool:
    return isinstance(values, list) and all(
        type(value) in (int, float) and (0 < value < np.inf or (zero_too and value == 0)) for value in values
    )
