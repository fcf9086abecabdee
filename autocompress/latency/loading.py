"""Reads a profile or an estimate, whichever a file holds."""

from __future__ import annotations

from pathlib import Path

from autocompress.latency.model import LatencyModel
from autocompress.latency.on_device import read_json
from autocompress.latency.roofline import Estimate


def load_latency_model(path: str | Path) -> LatencyModel | Estimate:
    """What `autocompress profile` wrote.

    Raises:
        InputError: the file is missing, cut off or edited; names the line.
    """
    return Estimate.load(path) if "estimate" in read_json(Path(path)) else LatencyModel.load(path)
