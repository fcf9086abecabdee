"""The command that looks at a run from outside: status."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from autocompress.cli.commands import add_command

_SECONDS = 2.0


def add_commands(commands: Any) -> None:
    """Adds status."""
    status = add_command(commands, "status", _status, "show the state of a run, from another terminal")
    status.add_argument("run_dir", metavar="RUN", type=Path)
    status.add_argument("--watch", action="store_true", help="repeat until the run ends")


def _status(run_dir: Path, watch: bool) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from autocompress.report.status import status_lines
    from autocompress.results.run_folder import RunFolder

    folder = RunFolder(run_dir)
    if not watch:
        print("\n".join(status_lines(folder)))
        return
    with Live(Text(), console=Console(), auto_refresh=False) as live:
        while True:
            running = folder.driver() is not None
            live.update(Text("\n".join(status_lines(folder))), refresh=True)
            if not running:
                return
            time.sleep(_SECONDS)
