"""Early stopping where training matters: searches of ResNet-20 whose trials are really fine-tuned, rung after rung.

    python ladder.py record FOLDER --seeds 2       searches whose trials all go to their last rung; resumable
    python ladder.py stop FOLDER --seeds 2         the same trials stopped early, and searches that stop; ladder.json

FOLDER gets `resnet20_0_10_30_90.jsonl`, one line for each candidate.
"""

from __future__ import annotations

import argparse
import json
import random
import warnings
from pathlib import Path
from typing import Any

import torch
from ablation import Problem, curve, saved_and_kept, search
from resnets import FLOOR, Evaluator, sensitivity

from autocompress.machine import describe_machine, describe_versions
from autocompress.results.objectives import Objectives
from autocompress.sampling.early_stopping import KEEP_FRACTION, ParetoEarlyStopping
from autocompress.testing.replay import write_table

HERE = Path(__file__).parent
RUNGS = (0, 10, 30, 90)
N_JUDGED = 1000


def problem_of(folder: Path) -> tuple[Problem, Evaluator]:
    evaluator = Evaluator("resnet20", folder, RUNGS, N_JUDGED)
    known = sensitivity(evaluator, folder, False)
    return Problem(evaluator.space, evaluator.graph, evaluator, known, (1.0, FLOOR)), evaluator


def record(folder: Path, seeds: int, n_trials: int) -> None:
    problem, evaluator = problem_of(folder)
    for seed in range(seeds):
        before = evaluator.n_new
        search(problem, "solver", seed, n_trials)
        print(f"seed {seed}: {evaluator.n_new - before} new", flush=True)


def stop(folder: Path, seeds: int, n_trials: int) -> None:
    """Compute and hypervolume: of the recorded trials as they came and shuffled, and of searches that stop."""
    problem, evaluator = problem_of(folder)
    result: dict[str, Any] = {"command": f"python ladder.py stop FOLDER --seeds {seeds} --trials {n_trials}"}
    finished = [search(problem, "solver", seed, n_trials) for seed in range(seeds)]
    orders = [[evaluator(record.candidate) for record in records] for records in finished]
    for keep_fraction in (0.6, KEEP_FRACTION, 0.3):
        shuffled = [random.Random(i).sample(order, len(order)) for order in orders for i in range(5)]
        result[f"{keep_fraction} go on"] = {
            "as the searches went": saved_and_kept(orders, problem.corner, keep_fraction),
            "shuffled": saved_and_kept(shuffled, problem.corner, keep_fraction),
        }
    result["searches"] = []
    for seed, full in enumerate(finished):
        stopped = search(problem, "solver", seed, n_trials, stopping=ParetoEarlyStopping(Objectives("accuracy")))
        steps = [sum(record.rungs[-1].steps for record in records) for records in (full, stopped)]
        curves = [curve(problem, records, len(records)) for records in (full, stopped)]
        areas = [float(areas[-1]) for areas in curves]
        # finishing this number of trials takes as many steps as the search that stops
        n_alike = max(1, steps[1] // RUNGS[-1])
        found = {
            "seed": seed,
            "steps": steps,
            "hypervolume": [round(area, 4) for area in areas],
            "without stopping, at as many steps": round(float(curves[0][n_alike - 1]), 4),
        }
        result["searches"].append({**found, "saved": steps[0] / steps[1], "kept": areas[1] / areas[0]})
        print(result["searches"][-1], flush=True)
    result |= {"machine": describe_machine(), "versions": describe_versions()}
    (HERE / "ladder.json").write_text(json.dumps(result, indent=1) + "\n")
    write_table(HERE / "ladder_table.csv.gz", {e.candidate.digest: e for order in orders for e in order}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "stop"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--trials", type=int, default=60)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    (record if args.what == "record" else stop)(args.folder, args.seeds, args.trials)


if __name__ == "__main__":
    main()
