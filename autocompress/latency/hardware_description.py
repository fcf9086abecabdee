"""Reads a device's description: what it can compute and move at best, by public figures."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.settings_schema import refuse_unknown_keys, shown
from autocompress.space.candidate import FULL_BITS, Precision, bits_number
from autocompress.yaml_files import read_yaml_mapping

_FOLDER = Path(__file__).parent / "hardware"
_COMPUTED = (32, 16, 8)


@dataclass(frozen=True)
class Hardware:
    """A device as the roofline model sees it (Williams et al. 2009, doi:10.1145/1498765.1498785).

    Attributes:
        name, source: what it is, and where the figures come from.
        cores: that threads can be spread over.
        giga_macs: bits -> 10^9 multiply-accumulates a second of one core.
        bandwidth_gb_s, cache_bandwidth_gb_s: from memory and from the last cache, 10^9 bytes a second.
        cache_mib: size of the last cache.
        launch_us: cost of starting one layer.
        run_us: cost of one inference apart from its layers.
    """

    name: str
    source: str
    cores: int
    giga_macs: Mapping[int, float]
    bandwidth_gb_s: float
    cache_mib: float
    cache_bandwidth_gb_s: float
    launch_us: float
    run_us: float

    def __post_init__(self) -> None:
        for item in fields(self)[2:]:
            value = getattr(self, item.name)
            is_table = item.name == "giga_macs" and isinstance(value, Mapping)
            values = list(value.values()) if is_table else [value]
            for number in values:
                known = isinstance(number, int | float) and not isinstance(number, bool)
                if not known or not 0 < number < math.inf:
                    raise InputError(f"`{item.name} > 0` must hold in a device's description, but got {shown(number)}")
        if FULL_BITS not in self.giga_macs or set(self.giga_macs) - set(_COMPUTED):
            raise InputError(f"`giga_macs` must have 32 and may have 16 and 8 bits, but has {sorted(self.giga_macs)}")

    def peak(self, precision: Precision, n_threads: int) -> float:
        """Multiply-accumulates a second: at the next precision above that the device has."""
        bits = FULL_BITS if isinstance(precision, str) else bits_number(precision)
        best = min(have for have in self.giga_macs if have >= bits) if bits >= min(_COMPUTED) else FULL_BITS
        return 1e9 * self.giga_macs[best] * min(n_threads, self.cores)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "giga_macs": {str(bits): value for bits, value in self.giga_macs.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Hardware:
        """From plain values.

        Raises:
            InputError: a key is unknown or missing, or a value breaks its rule.
        """
        names = [item.name for item in fields(cls)]
        refuse_unknown_keys("a device's description", data, names)
        missing = [name for name in names if name not in data]
        if missing:
            raise InputError(f"a device's description must have {', '.join(missing)}, which it lacks")
        try:
            giga_macs = {int(bits): value for bits, value in data["giga_macs"].items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"`giga_macs` must map bits to numbers, but is {data['giga_macs']!r}") from error
        return cls(**{**data, "giga_macs": giga_macs})


def described_hardware() -> list[str]:
    """Names of the devices that come with the package."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def load_hardware(name: str) -> Hardware:
    """A device by its name here, or by the path of a YAML file.

    Raises:
        InputError: there is none, or its description is wrong.
    """
    if name.endswith((".yaml", ".yml")):
        return Hardware.from_dict(read_yaml_mapping(Path(name), "a device's description"))
    if name not in described_hardware():
        near = difflib.get_close_matches(name, described_hardware(), n=3) or described_hardware()
        raise InputError(f"no device is called {name!r}; try {', '.join(near)}, or give the path of a .yaml file")
    return Hardware.from_dict(read_yaml_mapping(_FOLDER / f"{name}.yaml", "a device's description"))
