"""Commands that time a device: profile."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.cli.commands import add_command, add_task_options, take_task


def add_commands(commands: Any) -> None:
    """Adds profile."""
    profile = add_command(commands, "profile", _profile, "time a device, to predict the latencies of candidates")
    profile.add_argument("task", metavar="TASK")
    add_task_options(profile)
    profile.add_argument("--space", default="default", help="space of the predicted candidates (default: default)")
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
    profile.add_argument("--folder", type=Path, help="keeps the files, so that an interrupted profile can be resumed")
    profile.add_argument(
        "--bundle", type=Path, metavar="FOLDER", help="only write a folder to copy to a device without torch"
    )
    profile.add_argument(
        "--measured", type=Path, metavar="JSON", help="with --bundle: make the profile from the device's measurements"
    )
    profile.add_argument(
        "--estimate",
        metavar="DEVICE",
        help="without a device: estimate from a description (a name that comes with the package, or a .yaml file)",
    )
    profile.add_argument(
        "--reuse",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="reuse times of layers from earlier profiles of this device (default: on)",
    )
    profile.add_argument("--force", action="store_true", help="measure on a noisy machine too")
    profile.add_argument(
        "--check",
        type=Path,
        metavar="SVG",
        help="also report the error on candidates left out, and draw predicted against measured",
    )


@dataclass(frozen=True)
class _Flags:
    """The flags of `profile`, by their names."""

    space: str
    runtime: str
    n_threads: int
    batch: int | None
    output: Path | None
    n_candidates: int
    n_passes: int
    folder: Path | None
    bundle: Path | None
    measured: Path | None
    estimate: str | None
    reuse: bool
    force: bool
    check: Path | None


def _profile(task: str, **named: Any) -> None:
    task = take_task(task, named)
    flags = _Flags(**named)
    from autocompress.errors import InputError
    from autocompress.files import check_new_file
    from autocompress.latency.on_device import drift_warning
    from autocompress.latency.plan import PlanSettings
    from autocompress.latency.profiling import check_numbers, profile, profile_of, write_bundle

    check_numbers(flags.n_candidates, flags.n_threads, flags.n_passes, flags.batch)
    if flags.output is not None:
        check_new_file(flags.output)
    if flags.estimate is not None:
        _estimate(task, flags.estimate, flags)
        return
    bundle, output = flags.bundle, flags.output
    if bundle is not None and flags.measured is None:
        plan = PlanSettings(flags.runtime, flags.n_threads, flags.n_candidates, flags.batch)
        script = write_bundle(task, flags.space, bundle, plan, show=True)
        print(f"\ncopy {bundle} to the device, run there: python3 {script.name}; copy measured.json back, then")
        quoted = shlex.join([task, "--bundle", str(bundle), "--measured", "measured.json", "-o", "device.json"])
        print(f"autocompress profile {quoted}")
        return
    if output is None:
        raise InputError("a profile needs a file to be written to; name it with -o device.json")
    if bundle is not None and flags.measured is not None:
        model = profile_of(bundle, flags.measured)
    else:
        model = profile(
            task,
            flags.space,
            runtime=flags.runtime,
            n_threads=flags.n_threads,
            n_candidates=flags.n_candidates,
            batch=flags.batch,
            n_passes=flags.n_passes,
            folder=flags.folder,
            force=flags.force,
            reuse=flags.reuse,
            show=True,
        )
    model.save(output)
    facts = model.facts()
    print(
        f"\n{output}: {facts['task']} on {facts['runtime']} {facts['version']}, "
        f"{model.baseline_ms:.3f} ms uncompressed, "
        f"{len(model.table.pieces)} layers and {len(model.table.candidates)} candidates timed"
    )
    for line in drift_warning(facts["clock_drift"]):
        print(line)
    if flags.check is not None:
        _check(model, flags.check)


def _estimate(task: str, device: str, flags: _Flags) -> None:
    """Prints what a described device is estimated to take for the uncompressed model and a few uniform candidates."""
    from rich.console import Console
    from rich.table import Table

    from autocompress.latency.hardware_description import load_hardware
    from autocompress.latency.roofline import estimate_of
    from autocompress.task import load_task

    hardware = load_hardware(device)
    model, offered = estimate_of(load_task(task), flags.space, hardware, flags.n_threads, flags.batch)
    named = {
        "uncompressed": offered.baseline(),
        "8 bits": offered.uniform(weight_bits=8),
        "half of the channels": offered.uniform(prune_ratio=0.5),
        "half of the channels, 8 bits": offered.uniform(prune_ratio=0.5, weight_bits=8),
    }
    totals, ends = model.totals(list(named.values())), model.interval(list(named.values()))
    table = Table(title=f"ESTIMATE, not measured: {model.head['task']} on {hardware.name}, {flags.n_threads} thread(s)")
    for column in ("candidate", "ms", "from … to", "energy, mJ", "weights, MiB", "memory, MiB"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    columns = (totals.ms, ends[:, 0], ends[:, 1], totals.energy_mj, totals.size_mib, totals.memory_mib)
    for name, ms, low, high, energy, size, memory in zip(named, *columns, strict=True):
        table.add_row(name, f"{ms:.4g}", f"{low:.3g} … {high:.3g}", f"{energy:.3g}", f"{size:.3g}", f"{memory:.3g}")
    console = Console()
    console.print(table)
    console.print("energy by the 45 nm figures of Horowitz 2014: for comparing candidates", style="dim")
    if flags.output is not None:
        model.save(flags.output)
        console.print(f"{flags.output}: for `search --profile`; measured trials correct it")


def _check(model: Any, svg: Path) -> None:
    from autocompress.latency.validation import check_by_leaving_out

    result = check_by_leaving_out(model)
    facts = model.facts()
    svg.write_text(result.svg(f"{facts['task']}, {facts['runtime']} {facts['version']}"), encoding="utf-8")
    print(f"{result.text()}\n{svg}")
