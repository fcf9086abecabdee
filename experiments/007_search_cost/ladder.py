"""Early stopping where training matters: searches of ResNet-20 whose trials are really fine-tuned, rung after rung.

    python ladder.py record FOLDER --who solver --seeds 2 --trials 60      every trial to its last rung; resumable

FOLDER gets `resnet20_0_10_30_90.jsonl`, one line for each candidate.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from ablation import SAMPLERS, Problem, search
from resnets import FLOOR, Evaluator, sensitivity

RUNGS = (0, 10, 30, 90)
N_JUDGED = 1000


def problem_of(folder: Path) -> tuple[Problem, Evaluator]:
    evaluator = Evaluator("resnet20", folder, RUNGS, N_JUDGED)
    known = sensitivity(evaluator, folder, False)
    return Problem(evaluator.space, evaluator.graph, evaluator, known, (1.0, FLOOR)), evaluator


def record(folder: Path, whom: list[str], seeds: int, n_trials: int) -> None:
    problem, evaluator = problem_of(folder)
    for seed in range(seeds):
        for who in whom:
            before = evaluator.n_new
            search(problem, who, seed, n_trials)
            print(who, seed, f"{evaluator.n_new - before} new", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--who", nargs="+", choices=SAMPLERS, default=["solver"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--trials", type=int, default=60)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    record(args.folder, args.who, args.seeds, args.trials)


if __name__ == "__main__":
    main()
