"""Where data and cache are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.errors import MissingDataError
from autocompress.tasks.data import CACHE_VARIABLE, DATA_VARIABLE, cache_folder, data_folder


def test_the_variable_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert data_folder() == tmp_path


def test_without_it_the_cache_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert data_folder() == tmp_path / "data"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_folder().name == "autocompress"


def test_a_variable_that_names_no_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(
        MissingDataError, match="AUTOCOMPRESS_DATA must name a folder on this machine, but there is no .*gone"
    ):
        data_folder()
