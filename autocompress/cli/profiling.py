"""Commands that time a device: profile."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from autocompress.cli.commands import add_command
from autocompress.cli.task_options import add_task_options, take_task


def add_commands(commands: Any) -> None:
    """Adds profile."""
    profile = add_command(
        commands, "profile", _profile, "time a device, so that latencies of candidates can be predicted"
    )
    profile.add_argument("task", metavar="TASK")
    add_task_options(profile)
    profile.add_argument("--space", default="default", help="whose candidates are to be predicted (default: default)")
    profile.add_argument("--runtime", default="onnxruntime", help="target runtime (default: onnxruntime)")
    profile.add_argument("--threads", dest="n_threads", type=int, default=1, help="threads of the runtime (default: 1)")
    profile.add_argument(
        "--batch", type=int, help="samples in one inference (default: as in the task's example inputs)"
    )
    profile.add_argument("-o", "--output", type=Path, help="the profile, a JSON file for `search --profile`")
    profile.add_argument(
        "--candidates", dest="n_candidates", type=int, default=50, help="whole candidates to calibrate on (default: 50)"
    )
    profile.add_argument("--passes", dest="n_passes", type=int, default=1, help="times that each file is timed")
    profile.add_argument("--folder", type=Path, help="keeps the files, so that a profile that was cut off goes on")
    profile.add_argument(
        "--bundle", type=Path, metavar="FOLDER", help="only write a folder to copy to a device that has no torch"
    )
    profile.add_argument(
        "--measured", type=Path, metavar="JSON", help="with --bundle: make the profile of what the device measured"
    )
    profile.add_argument(
        "--estimate",
        metavar="DEVICE",
        help="no device at hand: estimate from a description (a name that comes with the package, or a .yaml file)",
    )
    profile.add_argument(
        "--reuse",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take the times of layers that an earlier profile timed on this device (default: on)",
    )
    profile.add_argument("--force", action="store_true", help="measure on a noisy machine too")
    profile.add_argument(
        "--check",
        type=Path,
        metavar="SVG",
        help="also report the error on candidates left out, and draw predicted against measured",
    )


def _profile(
    task: str,
    space: str,
    runtime: str,
    n_threads: int,
    batch: int | None,
    output: Path | None,
    n_candidates: int,
    n_passes: int,
    folder: Path | None,
    bundle: Path | None,
    measured: Path | None,
    estimate: str | None,
    reuse: bool,
    force: bool,
    check: Path | None,
    **flags: Any,
) -> None:
    task = take_task(task, flags)
    from autocompress.errors import InputError
    from autocompress.files import check_new_file
    from autocompress.latency.on_device import drift_warning
    from autocompress.latency.profiling import check_numbers, profile, profile_of, write_bundle

    check_numbers(n_candidates, n_threads, n_passes, batch)
    if output is not None:
        check_new_file(output)
    if estimate is not None:
        _estimate(task, space, estimate, n_threads, batch, output)
        return
    plan: dict[str, Any] = {"runtime": runtime, "n_threads": n_threads, "n_candidates": n_candidates, "batch": batch}
    if bundle is not None and measured is None:
        script = write_bundle(task, space, bundle, show=True, **plan)
        print(f"\ncopy {bundle} to the device, run there: python3 {script.name}; copy measured.json back, then")
        quoted = shlex.join([task, "--bundle", str(bundle), "--measured", "measured.json", "-o", "device.json"])
        print(f"autocompress profile {quoted}")
        return
    if output is None:
        raise InputError("a profile needs a file to be written to; name it with -o device.json")
    if bundle is not None and measured is not None:
        model = profile_of(bundle, measured)
    else:
        model = profile(task, space, n_passes=n_passes, folder=folder, reuse=reuse, force=force, show=True, **plan)
    model.save(output)
    facts = model.facts()
    print(
        f"\n{output}: {facts['task']} on {facts['runtime']} {facts['version']}, "
        f"{model.baseline_ms:.3f} ms uncompressed, "
        f"{len(model.table.pieces)} layers and {len(model.table.candidates)} candidates timed"
    )
    for line in drift_warning(facts["clock_drift"]):
        print(line)
    if check is not None:
        _check(model, check)


def _estimate(task: str, space: str, device: str, n_threads: int, batch: int | None, output: Path | None) -> None:
    """Prints what a described device is estimated to take for the uncompressed model and a few uniform candidates."""
    from rich.console import Console
    from rich.table import Table

    from autocompress.latency.hardware_description import load_hardware
    from autocompress.latency.roofline import estimate_of
    from autocompress.task import load_task

    hardware = load_hardware(device)
    model, offered = estimate_of(load_task(task), space, hardware, n_threads, batch)
    named = {
        "uncompressed": offered.baseline(),
        "8 bits": offered.uniform(weight_bits=8),
        "half of the channels": offered.uniform(prune_ratio=0.5),
        "half of the channels, 8 bits": offered.uniform(prune_ratio=0.5, weight_bits=8),
    }
    totals, ends = model.totals(list(named.values())), model.interval(list(named.values()))
    table = Table(title=f"ESTIMATE, not measured: {model.head['task']} on {hardware.name}, {n_threads} thread(s)")
    for column in ("candidate", "ms", "from … to", "energy, mJ", "weights, MiB", "memory, MiB"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    columns = (totals.ms, ends[:, 0], ends[:, 1], totals.energy_mj, totals.size_mib, totals.memory_mib)
    for name, ms, low, high, energy, size, memory in zip(named, *columns, strict=True):
        table.add_row(name, f"{ms:.4g}", f"{low:.3g} … {high:.3g}", f"{energy:.3g}", f"{size:.3g}", f"{memory:.3g}")
    console = Console()
    console.print(table)
    console.print("energy by the 45 nm figures of Horowitz 2014: for comparing candidates", style="dim")
    if output is not None:
        model.save(output)
        console.print(f"{output}: for `search --profile`; measured trials correct it")


def _check(model: Any, svg: Path) -> None:
    from autocompress.latency.validation import check_by_leaving_out

    result = check_by_leaving_out(model)
    facts = model.facts()
    svg.write_text(result.svg(f"{facts['task']}, {facts['runtime']} {facts['version']}"), encoding="utf-8")
    print(f"{result.text()}\n{svg}")
