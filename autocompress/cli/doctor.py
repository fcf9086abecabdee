"""The command that looks at the installation and the machine: doctor."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from autocompress.cli.commands import add_command, add_json, print_json

if TYPE_CHECKING:
    from autocompress.doctor.examination import Examination
    from autocompress.doctor.packages import Package

Row = tuple[str, str, str, str]
"""Part, name, state, text."""


def add_commands(commands: Any) -> None:
    """Adds doctor."""
    doctor = add_command(
        commands, "doctor", _doctor, "say what is installed, which runtimes work, and what this CPU runs"
    )
    add_json(doctor)


def _doctor(as_json: bool) -> None:
    from autocompress.doctor.examination import examine
    from autocompress.errors import AutocompressError

    found = examine()
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found)
    if found.faults:
        raise AutocompressError(f"the core cannot run here: {'; '.join(found.faults)}")


def _show(found: Examination) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from autocompress import __version__
    from autocompress.report.wording import plain_text

    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"autocompress {__version__}, Python {platform.python_version()}",
        title_justify="left",
    )
    for head in ("", "", "state", "what was found"):
        table.add_column(head, overflow="fold")
    part = ""
    for row in rows(found):
        table.add_row(*(plain_text(cell) for cell in (row[0] if row[0] != part else "", *row[1:])))
        part = row[0]
    console = Console()
    console.print(table)
    if not found.faults:
        unknown = [probe.name for probe in found.probes.found if probe.state == "unknown"]
        also = f"; not known: {', '.join(unknown)}" if unknown else ""
        console.print(f"autocompress can search here{also}", markup=False, highlight=False)


def rows(found: Examination) -> Iterator[Row]:
    """The table's rows, part by part."""
    yield from _package_rows(found.packages)
    for probe in found.probes.found:
        executes = f"; executes weight_bits {', '.join(probe.executes)}" if probe.executes else ""
        yield "search" if probe.library == "search" else "runtimes", probe.name, probe.state, probe.text + executes
    yield from _machine_rows(found)
    yield "data", "data sets", "ok" if found.data.found else "missing", found.data.text
    for folder in found.folders:
        free = "free space unknown" if folder.free_gib is None else f"{folder.free_gib:.1f} GiB free"
        yield "disk", folder.what, "low" if folder.is_full else "ok", f"{free}: {folder.path}"


def _package_rows(packages: tuple[Package, ...]) -> Iterator[Row]:
    needed = [package for package in packages if not package.extras]
    if not packages:
        yield "packages", "needed", "unknown", "autocompress runs from its sources, without being installed"
    if needed:
        faults = [package.fault for package in needed if package.fault is not None]
        there = [f"{package.name} {package.version}" for package in needed if package.version is not None]
        yield "packages", "needed", "failed" if faults else "ok", "; ".join([", ".join(there), *faults])
    for package in packages:
        if not package.extras:
            continue
        if package.version is not None:
            yield "packages", package.name, "failed" if package.fault else "ok", package.fault or package.version
        else:
            ways = " or ".join(f'pip install "autocompress[{extra}]"' for extra in package.extras)
            yield "packages", package.name, "missing", f"optional: {ways}"


def _machine_rows(found: Examination) -> Iterator[Row]:
    from autocompress.doctor.surroundings import int8_text, telling_features

    machine, load = found.machine, found.load
    yield "machine", "CPU", "ok", f"{machine['cpu']}, {machine['cores']} cores, memory {machine['memory']}"
    yield "machine", "it executes", "ok", ", ".join(telling_features(found.features)) or "not known"
    yield "machine", "8 bits", "ok", int8_text(found.features)
    yield "machine", "governor", "ok", machine["governor"]
    if load is None:
        yield "machine", "load", "unknown", "the system does not tell"
    else:
        advice = "quiet enough to time on" if load.is_quiet else "busy: latencies that are timed now are rough"
        state = "ok" if load.is_quiet else "busy"
        yield "machine", "load", state, f"{load.average:.2f} on {load.n_cores} cores, {advice}"
    yield "machine", "GPU", "ok" if found.probes.accelerators else "missing", found.gpu_text()
