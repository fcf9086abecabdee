"""Settings of the whole suite: the markers' conditions, a cache of its own, quiet property tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch

from autocompress.errors import MissingDataError
from autocompress.results.provenance import KEY_VARIABLE
from autocompress.tasks.data import CACHE_VARIABLE, DATA_VARIABLE, data_folder

if TYPE_CHECKING:
    from tests.shared.points import Point

SECOND_DEVICE_VARIABLE = "AUTOCOMPRESS_SECOND_DEVICE"
"""Set in the process that `tests/test_on_second_device.py` starts; these tests are collected only there."""

collect_ignore = [] if os.environ.get(SECOND_DEVICE_VARIABLE) else ["second_device"]

hypothesis.settings.register_profile("suite", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.load_profile("suite")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what this machine cannot run; with AUTOCOMPRESS_REQUIRE_DATA=1, missing data is a failure."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    reason = _missing_data() if item.get_closest_marker("data") else None
    if reason is None:
        return
    if os.environ.get("AUTOCOMPRESS_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def _missing_data() -> str | None:
    try:
        folder = data_folder()
    except MissingDataError as error:
        return str(error)
    missing = [name for name in ("cifar10", "cifar10_resnet") if not (folder / name).is_dir()]
    return (
        f"needs {', '.join(missing)} in {folder}; set {DATA_VARIABLE} to the folder that holds them"
        if missing
        else None
    )


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the suite out of the user's cache: cached models are made by the code under test, once a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        patch.setenv(KEY_VARIABLE, str(tmp_path_factory.mktemp("key") / "key"))
        yield


@pytest.fixture(scope="session")
def float_point(tmp_path_factory: pytest.TempPathFactory) -> Point:
    """The uncompressed tiny model as a front point: its folder and its record. Not to be changed."""
    from autocompress.space.candidate import Candidate
    from tests.shared.points import tiny_point

    folder = tmp_path_factory.mktemp("float") / "trial_0007"
    return folder, tiny_point(folder, Candidate())


@pytest.fixture(scope="session")
def mixed_point(tmp_path_factory: pytest.TempPathFactory) -> Point:
    """The tiny model pruned, factorized and partly quantized, as a front point. Not to be changed."""
    from tests.shared.points import tiny_point

    folder = tmp_path_factory.mktemp("mixed") / "trial_0007"
    return folder, tiny_point(folder)
