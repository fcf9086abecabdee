"""The tabular benchmark: builds the digits table from recordings, and replays searches on it.

python tabular.py build FOLDER     digits_table.csv.gz from `record.py digits FOLDER` and `record.py time FOLDER`
python tabular.py run              ablation, early stopping and told values; writes tabular.json and curves.csv
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from ablation import SAMPLERS, Problem, curve, first_at, saved_and_kept, search
from scipy.stats import spearmanr
from torch import nn

from autocompress.config import SearchSettings
from autocompress.execution.sensitivity import SensitivityProbe, measure_sensitivity
from autocompress.graph import ModelGraph, inspect_model
from autocompress.machine import describe_machine, describe_versions
from autocompress.results.objectives import Objectives
from autocompress.results.pareto import hypervolume
from autocompress.results.records import Latency, Rung, State, TrialRecord
from autocompress.sampling.early_stopping import KEEP_FRACTION, ParetoEarlyStopping, expected_score
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.task import Task, as_inputs, load_task
from autocompress.testing.replay import Evaluation, read_table, write_table

HERE = Path(__file__).parent
TABLE = HERE / "digits_table.csv.gz"
CORNER = (1.0, 0.9)  # latency of the uncompressed model, 90 % accuracy
N_TRIALS, SEEDS = 30, range(5)
SPARE = 1.35  # proposals that were not recorded fail in the replay and are left out, for all samplers alike


def build(folder: Path) -> None:
    """One row for each candidate; its latency is the median over the passes of timing."""
    space, _ = problem_parts()
    ratios: defaultdict[str, list[float]] = defaultdict(list)
    milliseconds: list[float] = []
    for line in (folder / "timings.jsonl").read_text().splitlines():
        timing = json.loads(line)
        ratios[timing["digest"]].append(timing["ratio"])
        milliseconds.append(timing["ms"])
    reference_ms = float(np.median(milliseconds))
    evaluations = {}
    for line in (folder / "trials.jsonl").read_text().splitlines():
        item = json.loads(line)
        candidate = Candidate.from_dict(item["candidate"])
        if not in_space(space, candidate) or item["digest"] not in ratios:
            continue
        own = np.array(ratios[item["digest"]])
        ratio = 1.0 if candidate.is_baseline else float(np.median(own))
        evaluations[item["digest"]] = Evaluation(
            candidate,
            Latency(ratio, float(np.ptp(own) / 2), ratio * reference_ms, len(own)),
            tuple(Rung(r["steps"], {"accuracy": r["accuracy"], "loss": r["loss"]}) for r in item["rungs"]),
            tuple(r["seconds"] for r in item["rungs"]),
            item["size_mib"],
            item["n_params"],
            item["n_macs"],
        )
    write_table(TABLE, evaluations.values())
    spread = np.median([e.latency.spread for e in evaluations.values()])
    print(f"{len(evaluations)} candidates; median half range of the passes' ratios {spread:.4f}")


def in_space(space: SearchSpace, candidate: Candidate) -> bool:
    try:
        space.choices_of(candidate)
    except ValueError:
        return False
    return True


def problem_parts() -> tuple[SearchSpace, tuple[Task, nn.Module, ModelGraph]]:
    task = load_task("digits")
    model = task.build_model()
    graph = inspect_model(model, as_inputs(task.example_inputs()))
    return SearchSpace.load(str(HERE / "digits_table.yaml"), graph), (task, model, graph)


def load(cache: Path) -> tuple[Problem, dict[str, Evaluation]]:
    space, (task, model, graph) = problem_parts()
    table = read_table(TABLE)
    sensitivity = measure_sensitivity(space, SensitivityProbe(task, model, graph, SearchSettings()), cache)
    return Problem(space, graph, lambda candidate: table[candidate.digest], sensitivity, CORNER), table


def true_area(table: dict[str, Evaluation]) -> float:
    points = [[e.latency.ratio, -max(r.metrics["accuracy"] for r in e.rungs)] for e in table.values()]
    return hypervolume(np.array(points), (CORNER[0], -CORNER[1]))


def ablation(problem: Problem, area: float) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """For each sampler: share of the true front's hypervolume over trials, 5 seeds."""
    result: dict[str, Any] = {}
    rows: list[tuple[Any, ...]] = []
    for who in SAMPLERS:
        curves = []
        for seed in SEEDS:
            records = recorded(search(problem, who, seed, int(SPARE * N_TRIALS)))[:N_TRIALS]
            curves.append(curve(problem, records, N_TRIALS) / area)
            rows += [(who, seed, i + 1, round(float(v), 5)) for i, v in enumerate(curves[-1])]
        reached = np.array([first_at(c, 0.99) for c in curves])
        result[who] = {
            "share after trials, median (min, max)": {
                n: [round(float(f([c[n - 1] for c in curves])), 4) for f in (np.median, np.min, np.max)]
                for n in (6, 11, 14, 20, 30)
            },
            "trials to 99 %": [None if np.isinf(r) else int(r) for r in sorted(reached)],
        }
        print(who, result[who], flush=True)
    return result, rows


def recorded(records: list[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if record.state != "failed"]


def stopping(table: dict[str, Evaluation], area: float) -> dict[str, Any]:
    """Candidates in a random order, each stopped or not: compute and hypervolume against finishing all of them."""
    return {
        f"{n} trials, {keep_fraction} go on": saved_and_kept(
            [[table[digest] for digest in random.Random(seed).sample(sorted(table), n)] for seed in SEEDS],
            CORNER,
            keep_fraction,
        )
        for n in (60, len(table))
        for keep_fraction in (0.6, KEEP_FRACTION, 0.3)
    }


def told(table: dict[str, Evaluation]) -> dict[str, Any]:
    """Errors of the value told for a stopped trial, and of its value at the stop, against its real final value."""
    errors: defaultdict[str, list[float]] = defaultdict(list)
    orders: defaultdict[str, list[float]] = defaultdict(list)
    for seed in SEEDS:
        rule = ParetoEarlyStopping(Objectives("accuracy"))
        ended: list[TrialRecord] = []
        order = sorted(table)
        random.Random(seed).shuffle(order)
        truth, ours, raw = [], [], []
        for number, digest in enumerate(order):
            own = table[digest]
            n = next(
                (
                    i + 1
                    for i, r in enumerate(own.rungs[:-1])
                    if not rule.should_continue(digest, r.steps, r.metrics["accuracy"], own.latency.ratio)
                ),
                len(own.rungs),
            )
            best = max(own.rungs[:n], key=lambda rung: rung.metrics["accuracy"]).metrics
            state: State = "complete" if n == len(own.rungs) else "stopped"
            record = TrialRecord(number, state, "x", own.candidate, best, own.latency, rungs=own.rungs[:n])
            if state == "stopped" and sum(r.state == "complete" for r in ended) >= 5:
                truth.append(max(r.metrics["accuracy"] for r in own.rungs))
                ours.append(expected_score(record, ended, Objectives("accuracy")))
                raw.append(best["accuracy"])
            ended.append(record)
        for name, values in (("told", ours), ("value at the stop", raw)):
            errors[name].append(float(np.mean(np.array(values) - truth)))
            orders[name].append(float(spearmanr(values, truth)[0]))
    return {
        name: {
            "mean error, median over seeds": round(float(np.median(errors[name])), 4),
            "rank correlation with the truth, median": round(float(np.median(orders[name])), 3),
        }
        for name in errors
    }


def searches_with_stopping(problem: Problem, area: float) -> dict[str, Any]:
    """The default sampler with and without early stopping: hypervolume, worker-seconds and steps of 60 trials."""
    result: dict[str, Any] = {}
    for name, make in (
        ("all finish", lambda: None),
        ("early stopping", lambda: ParetoEarlyStopping(Objectives("accuracy"))),
    ):
        shares, seconds, steps = [], [], []
        for seed in SEEDS:
            records = recorded(search(problem, "solver", seed, 60, 1, make()))
            shares.append(float(curve(problem, records, len(records))[-1] / area))
            seconds.append(sum(r.ended - r.started for r in records))
            steps.append(sum(r.rungs[-1].steps for r in records))
        result[name] = {
            "share of the true hypervolume": round(float(np.median(shares)), 4),
            "worst": round(min(shares), 4),
            "worker-seconds": round(float(np.median(seconds)), 1),
            "fine-tune steps": int(np.median(steps)),
        }
    return result


def write_stopped_trial(problem: Problem, table: dict[str, Evaluation]) -> None:
    """stopped_trial.json: the last trial of a search that was stopped at its second rung, and what it was told as."""
    records = recorded(search(problem, "solver", 0, 60, 1, ParetoEarlyStopping(Objectives("accuracy"))))
    record = [item for item in records if item.state == "stopped" and len(item.rungs) == 2][-1]
    before = [item for item in records if item.number < record.number]
    own = table[record.candidate.digest]
    found = {
        "record": record.to_dict(),
        "told to the study": {
            "accuracy": round(expected_score(record, before, Objectives("accuracy")), 5),
            "latency ratio": own.latency.ratio,
        },
        "reached in its best rung": record.metrics["accuracy"],
        "what it reaches when it is trained to its end (recorded, not known to the search)": max(
            rung.metrics["accuracy"] for rung in own.rungs
        ),
    }
    (HERE / "stopped_trial.json").write_text(json.dumps(found, indent=1) + "\n")


def run(cache: Path) -> None:
    problem, table = load(cache)
    area = true_area(table)
    stopped = stopping(table, area)
    print(stopped, flush=True)
    tales = told(table)
    print(tales, flush=True)
    write_stopped_trial(problem, table)
    with_stopping = searches_with_stopping(problem, area)
    print(with_stopping, flush=True)
    samplers, rows = ablation(problem, area)
    result = {
        "command": "python tabular.py run",
        "n_candidates": len(table),
        "corner": CORNER,
        "true hypervolume": area,
        "samplers": samplers,
        "early stopping": stopped,
        "told": tales,
        "search with early stopping": with_stopping,
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    (HERE / "tabular.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["sampler,seed,trial,share"] + [",".join(map(str, row)) for row in rows]
    (HERE / "tabular_curves.csv").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "run"])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/007"))
    args = parser.parse_args()
    if args.what == "build":
        build(args.folder)
    else:
        run(args.folder)


if __name__ == "__main__":
    main()
