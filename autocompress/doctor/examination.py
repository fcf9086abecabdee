"""Puts together all that the doctor finds, and says whether the core can run."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from typing import Any

from autocompress import __version__
from autocompress.doctor.packages import Package, find_packages
from autocompress.doctor.probing import Probes, probe_all
from autocompress.doctor.surroundings import (
    Data,
    Folder,
    Load,
    find_data,
    find_folders,
    find_load,
    has_nvidia_driver,
    int8_text,
    telling_features,
)
from autocompress.machine import cpu_features, describe_machine

SECONDS = 12.0
"""For all runtimes together."""

CORE = ("torch", "onnxruntime", "optuna", "ray")
"""What no search can do without."""


@dataclass(frozen=True)
class Examination:
    """All findings.

    Attributes:
        packages: that this one needs or has an extra for; empty where it is not installed.
        probes: of the runtimes and of what a search imports.
        machine: see `describe_machine`.
        features: instruction sets of the CPU.
        load: before anything was tried; None where the system does not tell.
        data: the folder of data sets.
        folders: that a search writes to.
        nvidia_driver: whether one is loaded.
    """

    packages: tuple[Package, ...]
    probes: Probes
    machine: dict[str, str]
    features: frozenset[str]
    load: Load | None
    data: Data
    folders: list[Folder]
    nvidia_driver: bool

    @property
    def faults(self) -> list[str]:
        """Why the core cannot run; empty where it can, as far as is known."""
        core = [probe for probe in self.probes.found if probe.name in CORE]
        works = {probe.name for probe in core if probe.state == "ok"}  # a build for GPUs has another package name
        absent = [
            f"{package.name} is not installed"
            for package in self.packages
            if not package.extras and package.version is None and package.name not in works
        ]
        return absent + [f"{probe.name}: {probe.text}" for probe in core if probe.state in ("missing", "failed")]

    def gpu_text(self) -> str:
        """Which GPU there is."""
        if self.probes.accelerators:
            return self.probes.accelerators
        if self.probes.accelerators is None:
            return "unknown: PyTorch gave no answer"
        if self.nvidia_driver:
            return "an NVIDIA driver is loaded, but PyTorch sees no GPU; is it a build for the CPU alone?"
        return "none that PyTorch sees; models are trained on the CPU"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "schema": 1,
            "version": __version__,
            "python": platform.python_version(),
            "core_works": not self.faults,
            "faults": self.faults,
            "packages": [{**asdict(package), "fault": package.fault} for package in self.packages],
            "runtimes": [asdict(probe) for probe in self.probes.found],
            "machine": self.machine,
            "cpu_features": telling_features(self.features),
            "int8": int8_text(self.features),
            "gpu": self.probes.accelerators or None,
            "load": None if self.load is None else {**asdict(self.load), "is_quiet": self.load.is_quiet},
            "data": asdict(self.data),
            "folders": [{**asdict(folder), "is_full": folder.is_full} for folder in self.folders],
        }


def examine(seconds: float = SECONDS) -> Examination:
    """Looks at everything.

    Args:
        seconds: for all runtimes together; those that gave no answer by then are unknown.
    """
    load = find_load()  # before this process adds to it
    return Examination(
        packages=find_packages(),
        probes=probe_all(seconds),
        machine=describe_machine(),
        features=cpu_features(),
        load=load,
        data=find_data(),
        folders=find_folders(),
        nvidia_driver=has_nvidia_driver(),
    )
