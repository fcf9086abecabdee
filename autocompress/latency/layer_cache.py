"""Stores the times of single layers by device and runtime; models with equal layers share them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import InputError
from autocompress.files import digest_of, read_json
from autocompress.latency.on_device import runtime_version, write_json
from autocompress.latency.schema import DamageError, check_positive, check_type
from autocompress.machine import describe_machine
from autocompress.tasks.data import cache_folder

_SUSPICIOUS = 0.3


class LayerStore:
    """Milliseconds of layers alone, in one small JSON file for each device, runtime, version, thread count and batch.

    Args:
        key: everything but the layer that the times depend on.
        folder: for the files; None is the cache folder.
    """

    def __init__(self, key: Mapping[str, Any], folder: Path | None = None) -> None:
        self._key = dict(key)
        digest = digest_of(json.dumps(self._key, sort_keys=True), 16)
        self._file = (folder or cache_folder() / "layer_times") / f"{digest}.json"

    @classmethod
    def of_this_machine(cls, runtime: str, n_threads: int, batch: int, folder: Path | None = None) -> LayerStore:
        """The store of what is measured here."""
        key = {"runtime": runtime, "version": runtime_version(runtime), "n_threads": n_threads, "batch": batch}
        return cls({**key, "device": describe_machine()["cpu"]}, folder)

    def times(self) -> dict[str, float]:
        """Key of a layer -> milliseconds; empty where nothing was measured yet.

        Raises:
            InputError: the file is damaged; names the line and the file, which can be deleted.
        """
        if not self._file.is_file():
            return {}
        try:
            data = read_json(self._file)
            check_type(Mapping[str, float], data.get("ms"), ("ms",))
            for key, value in data["ms"].items():
                check_positive(value, ("ms", key))
        except DamageError as damage:
            raise InputError(f"{damage.at_line(self._file)}; or delete it") from damage
        return dict(data["ms"])

    def add(self, times: Mapping[str, float]) -> None:
        """Stores new times in milliseconds; they replace older ones."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        rounded = {key: float(f"{ms:.5g}") for key, ms in times.items()}
        write_json(self._file, {**self._key, "ms": {**self.times(), **rounded}})


def reused_times(stored: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """Stored times of layers that were not timed now, at the speed that the device has now.

    Layers that were timed both then and now are the repeated reference: the median of their ratios scales the others.
    Nothing is reused where the median is off by more than 30 %, or no layer was timed twice.

    Args:
        stored: key -> milliseconds then.
        now: key -> milliseconds now.
    """
    ratios = [now[key] / stored[key] for key in stored.keys() & now.keys()]
    if not ratios or abs(float(np.median(ratios)) - 1) > _SUSPICIOUS:
        return {}
    scale = float(np.median(ratios))
    return {key: ms * scale for key, ms in stored.items() if key not in now}
