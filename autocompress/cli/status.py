"""The command that looks at a run from outside: status."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from autocompress.cli.commands import add_command, add_json, print_json

_SECONDS = 2.0


def add_commands(commands: Any) -> None:
    """Adds status."""
    status = add_command(commands, "status", _status, "show the state of a run, from another terminal")
    status.add_argument("run_dir", metavar="RUN", type=Path)
    status.add_argument("--watch", action="store_true", help="repeat until the run ends")
    add_json(status)


def _status(run_dir: Path, watch: bool, as_json: bool) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from autocompress.errors import InputError
    from autocompress.report.status import status_data, status_lines
    from autocompress.results.run_folder import RunFolder

    folder = RunFolder(run_dir)
    if as_json:
        if watch:
            raise InputError("--json prints once; leave --watch out, and call it again")
        return print_json(status_data(folder))
    if not watch:
        return print("\n".join(status_lines(folder)))
    with Live(Text(), console=Console(), auto_refresh=False) as live:
        while True:
            running = folder.driver() is not None
            live.update(Text("\n".join(status_lines(folder))), refresh=True)
            if not running:
                return None
            time.sleep(_SECONDS)
