"""Makes a plan's folder complete for a device without torch: one script that needs Python, numpy and the runtime."""

from __future__ import annotations

import tempfile
import zipapp
from pathlib import Path

SCRIPT = "profile_device.pyz"
_MODULES = ("__init__.py", "errors.py", "machine.py", "latency/clock.py", "latency/on_device.py")


def write_script(folder: Path) -> Path:
    """Zips the modules that measure into one script; returns its path."""
    package = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as scratch:
        for name in _MODULES:
            target = Path(scratch) / "autocompress" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text((package / name).read_text(encoding="utf-8"), encoding="utf-8")
        (Path(scratch) / "autocompress" / "latency" / "__init__.py").touch()
        script = folder / SCRIPT
        zipapp.create_archive(
            scratch, script, interpreter="/usr/bin/env python3", main="autocompress.latency.on_device:main"
        )
    return script
