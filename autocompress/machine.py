"""Says what machine and which library versions produced a figure."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

_LIBRARIES = ("autocompress", "torch", "onnxruntime", "onnx", "optuna", "ray", "numpy", "pandas")


def describe_machine() -> dict[str, str]:
    """CPU model, cores, memory, frequency governor and operating system of this machine."""
    return {
        "cpu": _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": _field(Path("/proc/meminfo"), "MemTotal") or "unknown",
        "governor": _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")) or "unknown",
        "system": platform.platform(),
    }


def cpu_features() -> frozenset[str]:
    """Instruction sets of this CPU by Linux's names, such as "avx2" or "asimddp"; empty where the system names none."""
    file = Path("/proc/cpuinfo")
    return frozenset((_field(file, "flags") or _field(file, "Features")).split())


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that figures depend on; those not installed are left out."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _field(file: Path, name: str) -> str:
    for line in _text(file).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
