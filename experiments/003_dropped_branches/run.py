"""ResNet-56 with 12 of its 27 residual branches dropped, exported and timed against the original.

python run.py prepare OUT     writes the files and what is known without timing
python run.py time OUT        times them, paired, on ONNX Runtime and OpenVINO; nothing else should run
"""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import autocompress as ac
from autocompress.latency import measure_paired
from autocompress.machine import describe_machine
from autocompress.space.candidate import Candidate

DROPPED = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (2, 4, 6, 8)]
RUNTIMES = ("onnxruntime", "openvino")
MODELS = ("original", "dropped")
BATCHES = (1, 64)
N_ROUNDS = 15


def prepare(out: Path) -> None:
    """Writes the four models' files for both runtimes and batch sizes."""
    task = ac.load_task("cifar10:resnet56")
    model, inputs = task.build_model(), task.example_inputs()
    graph = ac.inspect_model(model, inputs)
    pruned = Candidate(prune_ratio={group.name: 0.3 for group in graph.groups})
    students = {
        "original": model,
        "dropped": ac.compress(
            model, Candidate(drop=frozenset(DROPPED)), inputs, task.calibration_batches(), graph=graph
        ),
        "pruned": ac.compress(model, pruned, inputs, graph=graph),
    }
    row = {
        "branches": [branch.name for branch in graph.branches],
        "dropped": DROPPED,
        "params": {name: sum(p.numel() for p in student.parameters()) for name, student in students.items()},
        "prunable": prunable_share(model, graph),
        "groups": {group.name: group.n_channels for group in graph.groups},
        "machine": describe_machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "openvino")},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "models.json").write_text(json.dumps(row, indent=1) + "\n")
    for name in MODELS:
        for runtime in RUNTIMES:
            for batch in BATCHES:
                folder = out / f"{name}-{runtime}-{batch}"
                folder.mkdir(exist_ok=True)
                ac.export(students[name].eval(), torch.rand(batch, 3, 32, 32), folder, runtime=runtime)
    print(json.dumps(row, indent=1))


def prunable_share(model: torch.nn.Module, graph: ac.ModelGraph) -> float:
    """Share of parameter entries that some channel group touches."""
    touched = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in model.named_parameters()}
    for group in graph.groups:
        for coupling in group.couplings:
            if coupling.tensor in touched:
                slots = torch.tensor([slot for channel in coupling.slots for slot in channel])
                touched[coupling.tensor].index_fill_(coupling.dim, slots, True)
    return sum(int(mask.sum()) for mask in touched.values()) / sum(mask.numel() for mask in touched.values())


def time(out: Path) -> None:
    """Paired ratios of the dropped model to the original."""
    rows = []
    for runtime in RUNTIMES:
        for batch in BATCHES:
            ours, theirs = (next((out / f"{name}-{runtime}-{batch}").iterdir()) for name in ("dropped", "original"))
            timing = measure_paired(
                ours, theirs, torch.rand(batch, 3, 32, 32), runtime=runtime, n_threads=1, n_rounds=N_ROUNDS
            )
            rows.append(
                {
                    "runtime": runtime,
                    "batch": batch,
                    "ratio": round(timing.ratio, 4),
                    "spread": round(timing.spread, 4),
                    "dropped_ms": round(timing.candidate_ms, 4),
                    "original_ms": round(timing.reference_ms, 4),
                }
            )
            print(rows[-1], flush=True)
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    {"prepare": prepare, "time": time}[sys.argv[1]](Path(sys.argv[2]))
