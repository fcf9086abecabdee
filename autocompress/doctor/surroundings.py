"""What is around the package: how busy the machine is, drivers, folders and free disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autocompress.errors import MissingDataError
from autocompress.tasks.data import DATA_VARIABLE, cache_folder, data_folder

QUIET_SHARE = 0.15
"""Of the cores; a machine with less load than this is quiet enough to time on."""

LITTLE_GIB = 2.0
"""Free space below which a search may fill the disk."""

_TELLING = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
_EXACT_ON_X86 = {"avx512_vnni", "avx_vnni", "amx_int8"}
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Load:
    """Processes that ran or waited, on average over the last minute."""

    average: float
    n_cores: int

    @property
    def is_quiet(self) -> bool:
        """Whether latencies that are timed now can be trusted."""
        return self.average <= QUIET_SHARE * self.n_cores


@dataclass(frozen=True)
class Folder:
    """A folder that a search reads or writes.

    Attributes:
        what: it is for.
        path: of it; it need not exist.
        free_gib: of its disk; None where the system does not say.
    """

    what: str
    path: str
    free_gib: float | None

    @property
    def is_full(self) -> bool:
        """Whether a search may fill its disk."""
        return self.free_gib is not None and self.free_gib < LITTLE_GIB


@dataclass(frozen=True)
class Data:
    """Where the data sets of the ready-made tasks are looked for, and whether that folder is there."""

    path: str
    found: bool
    text: str


def find_load() -> Load | None:
    """The load of this machine; None where the system does not tell."""
    try:
        return Load(os.getloadavg()[0], os.cpu_count() or 1)
    except (OSError, AttributeError):
        return None


def telling_features(features: frozenset[str]) -> list[str]:
    """Of a CPU's instruction sets those that decide how fast a precision runs."""
    return [name for name in _TELLING if name in features]


def int8_text(features: frozenset[str]) -> str:
    """What the instruction sets say about 8-bit kernels."""
    if features & _EXACT_ON_X86:
        return "VNNI is there: 8-bit kernels are fast and exact"
    if "avx2" in features:
        return "no VNNI: 8-bit kernels saturate, so that int8 weights keep half their range; they may be little faster"
    if "asimddp" in features:
        return "dot products are there: 8-bit kernels are fast and exact"
    return "nothing is known of its 8-bit kernels; `autocompress inspect TASK --runtime onnxruntime` tries them"


def has_nvidia_driver() -> bool:
    """Whether the driver of an NVIDIA GPU is loaded, whatever PyTorch was built for."""
    return _NVIDIA_DRIVER.is_file()


def find_data() -> Data:
    """The folder of data sets."""
    try:
        folder = data_folder()
    except MissingDataError as error:
        return Data(os.environ.get(DATA_VARIABLE, ""), False, str(error))
    if folder.is_dir():
        return Data(str(folder), True, f"found: {folder}")
    text = f"not there: {folder}; {DATA_VARIABLE} names another one; only ready-made tasks but digits need it"
    return Data(str(folder), False, text)


def find_folders() -> list[Folder]:
    """The folders that a search writes to, with the free space of their disks."""
    places: dict[str, Callable[[], Path]] = {
        "runs": Path.cwd,
        "temporary files": lambda: Path(tempfile.gettempdir()),
        "cache": cache_folder,
    }
    return [_folder(what, place) for what, place in places.items()]


def _folder(what: str, place: Callable[[], Path]) -> Folder:
    try:
        path = place().absolute()
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        return Folder(what, str(path), shutil.disk_usage(there).free / 2**30)
    except (OSError, StopIteration) as error:  # such as a working folder that was removed
        return Folder(what, f"unknown ({error})", None)
