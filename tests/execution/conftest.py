"""Measurement locks in a folder of the tests, so that no other search delays them; a clock that measures briefly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from autocompress.latency import clock


@pytest.fixture(scope="session", autouse=True)
def _own_locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture
def brief_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter rounds, for tests in which the figure itself does not matter much."""
    monkeypatch.setattr(clock, "_ROUND_SECONDS", 0.01)
    monkeypatch.setattr(clock, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(clock, "_WARM_UP_SECONDS", 0.005)
