"""Which of the packages that this one needs, or has an extra for, are installed."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

NAME = "autocompress"
_NOT_FOR_USERS = "dev"


@dataclass(frozen=True)
class Package:
    """One requirement.

    Attributes:
        name: of the package.
        wanted: its versions, such as ">=2.13"; "" for any.
        version: the installed one, or None.
        extras: of this package that bring it; empty for one that is always needed.
    """

    name: str
    wanted: str
    version: str | None
    extras: tuple[str, ...] = ()

    @property
    def fault(self) -> str | None:
        """What is wrong with the installed version; None where nothing is."""
        if self.version is None:
            return f"{self.name} is not installed"
        try:
            fits = SpecifierSet(self.wanted).contains(Version(self.version), prereleases=True)
        except InvalidVersion:  # a build of somebody's own, with a version of its own form
            return None
        return None if fits else f"{self.name} is {self.version}, but {self.wanted} is needed"


def find_packages() -> tuple[Package, ...]:
    """Every requirement in the metadata of this package: first those always needed, then those of extras by name.

    Empty where the package runs from its sources without being installed.
    """
    try:
        metadata = importlib.metadata.metadata(NAME)
    except importlib.metadata.PackageNotFoundError:
        return ()
    extras = [extra for extra in metadata.get_all("Provides-Extra") or () if extra != _NOT_FOR_USERS]
    needed: dict[str, Package] = {}
    optional: dict[str, Package] = {}
    for text in metadata.get_all("Requires-Dist") or ():
        item = Requirement(text)
        if canonicalize_name(item.name) == NAME:
            continue
        if item.marker is None or item.marker.evaluate({"extra": ""}):
            needed[item.name] = Package(item.name, str(item.specifier), _version(item.name))
            continue
        brought_by = [extra for extra in extras if item.marker.evaluate({"extra": extra})]
        if brought_by:
            earlier = optional[item.name].extras if item.name in optional else ()
            names = tuple(sorted({*earlier, *brought_by}))
            optional[item.name] = Package(item.name, str(item.specifier), _version(item.name), names)
    return (*needed.values(), *sorted(optional.values(), key=lambda package: package.name.lower()))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
