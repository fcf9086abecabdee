"""Writes the pages that the browser test opens: a run of 2,000 trials of a 60-layer model, and a small one."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import replace
from pathlib import Path

from autocompress.config import SearchSettings
from autocompress.report.files import write_front_table, write_report_page
from autocompress.results.node_times import LayerTimes, NodeTime
from autocompress.results.records import TrialRecord, write_records
from autocompress.results.run_folder import LAYER_TIMES, RunFolder, RunInfo
from autocompress.space.candidate import Candidate
from tests.report.searches import REFERENCE_MS, complete, exported, failed, hostile_records
from tests.shared.objectives import of_accuracy

N_TRIALS, N_LAYERS = 2000, 60


def large() -> tuple[list[TrialRecord], list[str]]:
    """Random candidates of a 60-layer model; the front has some forty points."""
    random_ = random.Random(0)
    layers = [f"stage{i // 20}.block{i // 2 % 10}.conv{i % 2}" for i in range(N_LAYERS)]
    records = [exported(complete(0, Candidate(), 1.0, 0.93, "baseline"), 0.93)]
    for number in range(1, N_TRIALS - 1):
        candidate = Candidate(
            prune_ratio={name: random_.choice([0.0, 0.125, 0.25, 0.5]) for name in layers},
            rank_ratio={name: random_.choice([0.25, 0.5]) for name in layers if random_.random() < 0.5},
            weight_bits={name: 8 for name in layers if random_.random() < 0.7},
        )
        cut = random_.uniform(0.2, 1.0)
        accuracy = 0.93 - 0.3 * (1 - cut) ** 2 - random_.expovariate(40)
        records.append(complete(number, candidate, cut, max(0.1, accuracy)))
    return [*records, failed(N_TRIALS - 1, "Traceback\nValueError: no")], layers


def write_run(folder: RunFolder, records: list[TrialRecord], layers: list[str], budget: float | None) -> None:
    """A run folder with these records; its front has files' numbers and layer times."""
    folder.path.mkdir(parents=True)
    folder.write_info(_info(layers, budget))
    write_records(folder.records, records)
    front = {point.number for point in folder.read().front.points}
    records = [
        exported(r, r.metrics["accuracy"] - 0.004) if r.number in front and r.file is None else r for r in records
    ]
    write_records(folder.records, records)
    random_ = random.Random(1)
    for record in records:
        if record.file is not None:
            point = folder.point(record.name)
            point.mkdir(parents=True)
            nodes = tuple(NodeTime(name, "Conv", random_.uniform(0.001, 0.02)) for name in layers)
            LayerTimes("onnxruntime", 60, sum(n.ms for n in nodes), 1.0, nodes).write(point / LAYER_TIMES)


def _info(layers: list[str], budget: float | None) -> RunInfo:
    return RunInfo(
        task="made up",
        task_spec="digits",
        settings=SearchSettings(),
        objectives=of_accuracy(budget, REFERENCE_MS),
        model_digest="0" * 12,
        space_digest="0" * 12,
        layers=tuple({"path": path, "kind": "conv2d", "n_params": 2304, "n_macs": 2_359_296} for path in layers),
        machine={"cpu": "a CPU"},
        command="autocompress search digits",
    )


def main(folder: Path) -> None:
    """Writes `large/`, `hostile/` and `thousands/` (of layers), and prints how long the large page took."""
    records, layers = large()
    many = [f"block.{i}" for i in range(3000)]
    wide = Candidate(dict.fromkeys(many, 0.5), weight_bits=dict.fromkeys(many, 8))
    names = [
        "</script><img src=x onerror=alert(1)>",
        "\"quotes\" 'and' &amp;",
        "emoji 🧊",
        "\u202eright-to-left \u05e9\u05dc",
    ]
    runs = {
        "large": (records, layers, 0.6),
        "hostile": ([replace(r, number=i) for i, r in enumerate(hostile_records(names))], names, 0.6),
        "thousands": ([complete(0, Candidate(), 1.0, 0.9, "baseline"), complete(1, wide, 0.5, 0.8)], many, 0.6),
    }
    for name, (rows, paths, budget) in runs.items():
        run = RunFolder(folder / name)
        write_run(run, rows, paths, budget)
        begin = time.perf_counter()
        read = run.read()
        write_front_table(read)
        write_report_page(read)
        print(f"{name}: {time.perf_counter() - begin:.2f} s, {run.report.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
