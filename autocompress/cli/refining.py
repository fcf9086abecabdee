"""Commands that make a new model of a point: refine, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.cli.commands import add_command, add_trust


def add_commands(commands: Any) -> None:
    """Adds refine and export."""
    refine = add_command(
        commands, "refine", _refine, "train one point longer: a new trial, and a new point if it is good"
    )
    refine.add_argument("run_dir", metavar="RUN", type=Path)
    refine.add_argument("trial", metavar="N", type=int, help="number of a trial that did not fail")
    refine.add_argument("--epochs", type=int, required=True, help="passes over the training data")
    refine.add_argument("--learning-rate", type=float, help="peak of the schedule (default: the search's)")

    add_trust(refine)

    export = add_command(commands, "export", _export, "write one point for another runtime, and measure it there")
    export.add_argument("run_dir", metavar="RUN", type=Path)
    export.add_argument("trial", metavar="N", type=int, help="number of a trial that did not fail")
    export.add_argument("--runtime", required=True, help="onnxruntime, openvino, torch, ... or package.module:Class")
    export.add_argument("--threads", type=int, help="threads of the runtime (default: the search's)")
    export.add_argument("-o", "--output", type=Path, required=True, help="new folder for the model")
    add_trust(export)


def _refine(run_dir: Path, trial: int, epochs: int, learning_rate: float | None, trust: bool) -> None:
    from autocompress.cli.reporting import show
    from autocompress.execution.refine import check_training, refine
    from autocompress.results.provenance import require_trust
    from autocompress.results.records import Rung
    from autocompress.results.run_folder import RunFolder

    def tell(rung: Rung) -> None:
        print(f"  after {rung.steps} steps: " + ", ".join(f"{k} {v:.4f}" for k, v in rung.metrics.items()), flush=True)

    check_training(epochs, learning_rate)
    require_trust(RunFolder(run_dir), trust)
    record = refine(RunFolder(run_dir), trial, epochs, learning_rate, on_rung=tell)
    show(run_dir)
    on_front = record.number in {point.number for point in RunFolder(run_dir).read().front.points}
    where = "on the front" if on_front else "not on the front"
    print(f"trial {record.number}: trial {trial} after {epochs} more epochs, {where}")


def _export(run_dir: Path, trial: int, runtime: str, threads: int | None, output: Path, trust: bool) -> None:
    from autocompress.cli.reporting import numbers_line
    from autocompress.execution.export_trial import export_trial
    from autocompress.results.provenance import require_trust
    from autocompress.results.run_folder import RunFolder, check_output

    check_output(output)
    require_trust(RunFolder(run_dir), trust)
    record = export_trial(RunFolder(run_dir), trial, runtime, output, threads)
    print(numbers_line(record))
    print(f"model: {output}")
