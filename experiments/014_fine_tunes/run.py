"""How a fine-tune should be set: equal CPU minutes for several settings, the metric on the selection split at the end.

    python experiments/014_fine_tunes/run.py cifar10:resnet56 "{}" "{round_from: 0.0}" --minutes 4

Each setting is YAML for `DistillSettings`. The student has 8 bits everywhere and lacks a share of its residual blocks,
evenly spread. Rows go to results.csv.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from autocompress.compression import compress
from autocompress.config import DistillSettings
from autocompress.distillation.fine_tune import FineTune, Teacher
from autocompress.evaluation import evaluate_model
from autocompress.graph import inspect_model
from autocompress.machine import describe_machine, describe_versions
from autocompress.space.candidate import Candidate
from autocompress.task import Task, load_task
from autocompress.task_access import calibration_of, examples_of

RESULTS = Path(__file__).with_name("results.csv")
_N_WARM, _N_TIMED = 2, 12


def student_of(task: Task, model: nn.Module, dropped: float) -> nn.Module:
    """8 bits in every layer, without a share of the residual blocks, evenly spread over the depth."""
    graph = inspect_model(model, examples_of(task))
    names = [branch.name for branch in graph.branches]
    n_gone = round(dropped * len(names))
    drop = frozenset(names[int((i + 0.5) * len(names) / n_gone)] for i in range(n_gone))
    bits: dict[str, int | str] = {layer.path: 8 for layer in graph.layers}
    candidate = Candidate(drop=drop, weight_bits=bits)
    return compress(model, candidate, examples_of(task), list(calibration_of(task)), graph=graph)


def trained(task: Task, model: nn.Module, student: nn.Module, asked: dict[str, Any], minutes: float) -> dict[str, Any]:
    """Trains a student for `minutes` CPU minutes and judges it."""
    before = evaluate_model(student, task)
    timed = FineTune(copy.deepcopy(student), Teacher(model), task, DistillSettings(**asked, rungs=(0, _N_TIMED)))
    timed.advance(_N_WARM)
    begin = time.process_time()
    timed.advance(_N_TIMED)  # as much of it with rounding as in the whole fine-tune
    n_steps = int(60 * minutes / ((time.process_time() - begin) / (_N_TIMED - _N_WARM)))
    begin = time.process_time()
    FineTune(student, Teacher(model), task, DistillSettings(**asked, rungs=(0, n_steps))).advance(n_steps)
    seconds, metric = time.process_time() - begin, next(iter(before))
    return {
        "settings": json.dumps(asked), "steps": n_steps, "cpu_seconds": round(seconds),
        "before": round(before[metric], 4), "after": round(evaluate_model(student, task)[metric], 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("settings", nargs="+", help="YAML of a mapping")
    parser.add_argument("--minutes", type=float, default=4.0, help="CPU minutes of one core for each fine-tune")
    parser.add_argument("--dropped", type=float, default=0.4, help="share of the residual blocks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task(args.task)
    model = task.build_model().eval()
    for text in args.settings:
        row = trained(task, model, student_of(task, model, args.dropped), yaml.safe_load(text), args.minutes)
        print(row, flush=True)
        row |= {
            "task": args.task, "dropped": args.dropped, "command": shlex.join(["python", *sys.argv]),
            "commit": subprocess.run(
                ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
            ).stdout.strip(),
            "machine": json.dumps(describe_machine()), "versions": json.dumps(describe_versions()),
        }  # fmt: skip
        is_new = not RESULTS.exists()
        with RESULTS.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()
