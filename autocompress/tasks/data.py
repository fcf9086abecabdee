"""Finds the folders of the ready-made tasks: given data, and what this package caches itself."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from autocompress.errors import MissingDataError

DATA_VARIABLE = "AUTOCOMPRESS_DATA"
CACHE_VARIABLE = "AUTOCOMPRESS_CACHE"


def cache_folder() -> Path:
    """The folder for what can be made again: `AUTOCOMPRESS_CACHE`, or the user's cache folder of this platform."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else platformdirs.user_cache_path("autocompress")


def data_folder() -> Path:
    """The folder of data sets and published weights: `AUTOCOMPRESS_DATA`, or `data/` in the cache folder.

    The latter need not exist.

    Raises:
        MissingDataError: `AUTOCOMPRESS_DATA` is set, but is no folder on this machine.
    """
    given = os.environ.get(DATA_VARIABLE)
    if not given:
        return cache_folder() / "data"
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise MissingDataError(
            f"{DATA_VARIABLE} must name a folder on this machine, but there is no {folder.absolute()}"
        )
    return folder
