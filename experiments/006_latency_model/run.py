"""How far predicted latencies are from measured ones, on candidates that took no part in the calibration.

run.py build   TASK SPACE FOLDER            files of the profile and of the held-out candidates; goes on if cut off
run.py measure FOLDER RUNTIME [--passes N]  on a quiet machine; goes on if cut off
run.py report  FOLDER RUNTIME               error figures, results.json, predictions.csv, a drawing
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

from autocompress.candidate import Candidate
from autocompress.graph import inspect_model
from autocompress.latency.check import check_on
from autocompress.latency.device import measure_folder, read_json, repeatability, settled, write_json
from autocompress.latency.pieces import quick_student
from autocompress.latency.plan import write_plan
from autocompress.latency.profiling import model_of
from autocompress.runtimes import export
from autocompress.space import SearchSpace
from autocompress.task import as_inputs, load_task

HERE = Path(__file__).parent
N_CALIBRATION, N_HELD_OUT = 60, 134
KINDS = ("drop", "prune_ratio", "rank_ratio", "weight_bits")


def draw(space: SearchSpace, seed: int) -> Candidate:
    """Even seeds: every choice uniform. Odd seeds: each kind of knob at a rate of its own."""
    if seed % 2 == 0:
        return space.sample(seed)
    rng = random.Random(seed)
    rate = {kind: rng.random() for kind in KINDS}
    rate["drop"] *= 0.7
    chosen = {k.name: rng.choice(k.choices[1:]) if rng.random() < rate[k.kind] else k.choices[0] for k in space.knobs}
    return space.candidate(chosen)


def build(task_name: str, space_name: str, folder: Path) -> None:
    task = load_task(task_name)
    plan = write_plan(task, space_name, folder / "profile", n_candidates=N_CALIBRATION, seed=1)
    model, inputs = task.build_model(), as_inputs(task.example_inputs())
    graph = inspect_model(model, inputs)
    space = SearchSpace.load(space_name, graph)
    held_out = folder / "held_out"
    held_out.mkdir(exist_ok=True)
    candidates = {f"c{seed:04d}.onnx": draw(space, seed) for seed in range(N_HELD_OUT)}
    for name, candidate in {"reference.onnx": Candidate(), **candidates}.items():
        if not (held_out / name).is_file():
            made = export(quick_student(model, graph, candidate, inputs), inputs, folder / "scratch")
            shutil.move(made, held_out / name)
    (folder / "candidates.json").write_text(json.dumps({name: c.to_dict() for name, c in candidates.items()}))
    head = {key: plan[key] for key in ("n_threads", "batch", "runtime")}
    write_json(held_out / "plan.json", {**head, "digest": "", "reference": "reference.onnx", "files": [*candidates]})


def measure(folder: Path, runtime: str, n_passes: int) -> None:
    for part, passes in (("profile", 1), ("held_out", n_passes)):
        plan = read_json(folder / part / "plan.json")
        write_json(folder / part / "plan.json", {**plan, "runtime": runtime})
        measure_folder(folder / part, folder / part / f"{runtime}.json", n_passes=passes)


def report(folder: Path, runtime: str) -> None:
    plan = read_json(folder / "profile" / "plan.json")
    model = model_of(plan, read_json(folder / "profile" / f"{runtime}.json"))
    results = read_json(folder / "held_out" / f"{runtime}.json")
    asked = {name: Candidate.from_dict(c) for name, c in read_json(folder / "candidates.json").items()}
    known = {candidate.digest for candidate, _ in model.measured}
    ratios = {name: ratio for name, ratio in settled(results).items() if asked[name].digest not in known}
    check = check_on(model, [asked[name] for name in ratios], list(ratios.values()))
    row: dict[str, Any] = {"task": plan["task"], "runtime": f"{runtime} {results['version']}", **check.figures()}
    row["repeatability"] = repeatability(results)
    name = f"{plan['task'].replace(':', '_')}_{runtime}"
    (HERE / f"{name}.svg").write_text(check.svg(f"{plan['task']}, {runtime}"), encoding="utf-8")
    with (HERE / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["candidate", "measured", "predicted", "low", "high", "sum_over_layers"])
        columns = (check.measured, check.predicted, *check.interval.T, check.naive)
        for label, *values in zip(ratios, *columns, strict=True):
            rows.writerow([label, *(f"{value:.5f}" for value in values)])
    print(json.dumps(row, indent=1))
    print(check.text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["build", "measure", "report"])
    parser.add_argument("words", nargs="+")
    parser.add_argument("--passes", type=int, default=2)
    args = parser.parse_args()
    if args.step == "build":
        build(args.words[0], args.words[1], Path(args.words[2]))
    elif args.step == "measure":
        measure(Path(args.words[0]), args.words[1], args.passes)
    else:
        report(Path(args.words[0]), args.words[1])
