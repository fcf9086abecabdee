"""Runs the tests of `tests/second_device` in a process of their own: a second device type cannot be taken back.

Registering it changes `torch.nn.Module` and where autograd runs, for as long as the process lives.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import SECOND_DEVICE_VARIABLE

HERE = Path(__file__).parent


def test_everything_that_moves_works_on_a_second_device() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
    done = subprocess.run(
        [*command, str(HERE / "second_device")],
        env={**os.environ, SECOND_DEVICE_VARIABLE: "1"}, cwd=HERE.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    print(done.stdout.strip().splitlines()[-1])
    assert "passed" in done.stdout
