"""Requirements are read from the package's metadata, and installed versions are compared with them."""

from __future__ import annotations

import importlib.metadata
from email.message import Message

import pytest

from autocompress.doctor.packages import Package, find_packages

_METADATA = """\
Requires-Dist: numpy>=2.0
Requires-Dist: no-such-package
Requires-Dist: ray[tune]>=99
Requires-Dist: autocompress[hf]; extra == 'dev'
Requires-Dist: ruff>=0.1; extra == 'dev'
Requires-Dist: pillow>=11.0; extra == 'report'
Requires-Dist: pillow>=11.0; extra == 'timm'
Requires-Dist: another-missing; extra == 'timm'
Requires-Dist: only-on-windows; sys_platform == 'win32'
"""


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    message = Message()
    for line in _METADATA.splitlines():
        name, _, value = line.partition(": ")
        message[name] = value
    for extra in ("dev", "report", "timm"):
        message["Provides-Extra"] = extra
    versions = {"numpy": "2.4.6", "ray": "2.60.0", "pillow": "13.0.0", "ruff": "0.15"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr("importlib.metadata.metadata", lambda name: message)
    monkeypatch.setattr("importlib.metadata.version", version)


@pytest.mark.usefixtures("metadata")
def test_needed_ones_come_first_and_extras_say_what_brings_them() -> None:
    assert find_packages() == (
        Package("numpy", ">=2.0", "2.4.6"),
        Package("no-such-package", "", None),
        Package("ray", ">=99", "2.60.0"),
        Package("another-missing", "", None, ("timm",)),
        Package("pillow", ">=11.0", "13.0.0", ("report", "timm")),
    ), "those for developers and for other systems are left out"


@pytest.mark.usefixtures("metadata")
def test_what_is_wrong_with_each_is_said() -> None:
    faults = {package.name: package.fault for package in find_packages()}
    assert faults["numpy"] is None
    assert faults["no-such-package"] == "no-such-package is not installed"
    assert faults["ray"] == "ray is 2.60.0, but >=99 is needed"


@pytest.mark.parametrize("version", ["2.13.0+cpu", "2.14.0.dev20260101", "git-3f2a"])
def test_local_early_and_odd_versions_count(version: str) -> None:
    assert Package("torch", ">=2.13", version).fault is None


def test_sources_without_an_installation_have_no_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.metadata", missing)
    assert find_packages() == ()
