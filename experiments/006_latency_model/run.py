"""How far predicted latencies are from measured ones, on candidates that took no part in the calibration.

run.py profile  TASK SPACE FOLDER           writes the files of the profile; goes on if cut off
run.py held_out TASK SPACE FOLDER           writes the files of the held-out candidates; likewise
run.py measure  FOLDER PART RUNTIME         PART is profile or held_out; on a quiet machine; likewise
run.py report   FOLDER RUNTIME              error figures into results.json, predictions as CSV, a drawing
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import onnx

from autocompress.files import read_json
from autocompress.graph import inspect_model
from autocompress.latency.layer_profiles import quick_student
from autocompress.latency.model import LatencyModel
from autocompress.latency.on_device import (
    MeasureSettings,
    converged,
    measure_folder,
    repeatability,
    show_progress,
    summary,
    write_json,
)
from autocompress.latency.plan import (
    N_CANDIDATES,
    WEIGHTS_FILE,
    PlanSettings,
    batch_size,
    draw_candidates,
    write_plan,
    write_shared,
)
from autocompress.latency.profiling import model_of
from autocompress.latency.validation import check_by_leaving_out, check_on
from autocompress.machine import describe_versions
from autocompress.runtimes import runtime_named
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.task import as_inputs, load_task

HERE = Path(__file__).parent
N_HELD_OUT = 122
CALIBRATION_SEED, HELD_OUT_SEED = 1, 2


def build_profile(task_name: str, space_name: str, folder: Path, n_candidates: int) -> None:
    """Writes the files of a profile and counts the seconds."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    write_plan(
        load_task(task_name),
        space_name,
        folder / "profile",
        PlanSettings(n_candidates=n_candidates, seed=CALIBRATION_SEED),
        listener=lambda n_done, n_all: print(f"{n_done}/{n_all}", flush=True),
    )
    spent = {"wall": time.perf_counter() - begin, "cpu": time.process_time() - begin_cpu}
    write_json(folder / "profile" / "build_seconds.json", spent)


def build_held_out(task_name: str, space_name: str, folder: Path, n_candidates: int) -> None:
    """Writes the files of other random candidates."""
    task = load_task(task_name)
    model, inputs = task.build_model().eval(), as_inputs(task.example_inputs())
    graph = inspect_model(model, inputs)
    drawn = draw_candidates(SearchSpace.load(space_name, graph), n_candidates, HELD_OUT_SEED)
    candidates = {f"{item.digest}.onnx": item for item in drawn}
    held_out = folder / "held_out"
    (held_out / "scratch").mkdir(parents=True, exist_ok=True)
    sizes = read_json(held_out / "sizes.json") if (held_out / "sizes.json").is_file() else {}
    for name, candidate in {"reference.onnx": Candidate(), **candidates}.items():
        if name not in sizes:
            student = model if candidate.is_baseline else quick_student(model, graph, candidate, inputs)
            made = runtime_named("onnxruntime").export(student, inputs, held_out / "scratch")
            sizes[name] = write_shared(onnx.load(made), held_out / name)
            write_json(held_out / "sizes.json", sizes)
    write_held_out_plan(
        held_out, {name: item for name, item in candidates.items() if name in sizes}, batch_size(inputs)
    )


def write_held_out_plan(held_out: Path, candidates: dict[str, Candidate], batch: int) -> None:
    """What is measured of these files; their shared weights are made where they are missing."""
    write_json(
        held_out / "plan.json",
        {
            "digest": HELD_OUT_SEED,
            "runtime": "",
            "n_threads": 1,
            "batch": batch,
            "weights": {"file": WEIGHTS_FILE, "n_bytes": max(read_json(held_out / "sizes.json").values())},
            "reference": "reference.onnx",
            "files": [*candidates],
            "candidates": {name: candidate.to_dict() for name, candidate in candidates.items()},
        },
    )


def measure(folder: Path, part: str, runtime: str, n_passes: int, n_rounds: int, seconds: float | None) -> None:
    """Times the files of one part; goes on where an earlier call stopped."""
    plan = read_json(folder / part / "plan.json")
    write_json(folder / part / "plan.json", {**plan, "runtime": runtime})
    output = folder / part / f"{runtime}.json"
    begin = time.perf_counter()
    results = measure_folder(
        folder / part, output, MeasureSettings(n_passes, n_rounds, seconds), listener=show_progress
    )
    results["seconds"] = results.get("seconds", 0.0) + time.perf_counter() - begin
    write_json(output, results)
    print(f"\n{summary(results)}; {results['seconds']:.0f} s so far")


def report(folder: Path, runtime: str) -> None:
    """Writes the row's predictions and drawing, and adds the row to results.json.

    Without measured held-out candidates those of the profile are each predicted by a fit to the others.
    """
    plan = read_json(folder / "profile" / "plan.json")
    measured = read_json(folder / "profile" / f"{runtime}.json")
    model = model_of(plan, measured)
    ratios = held_out_ratios(folder, runtime, model)
    check = check_on(model, *zip(*ratios, strict=True)) if ratios else check_by_leaving_out(model)
    candidates = [candidate for candidate, _ in ratios or model.measured]
    results = read_json(folder / "held_out" / f"{runtime}.json") if ratios else measured
    row: dict[str, Any] = {
        "task": plan["task"],
        "runtime": f"{runtime} {results['version']}",
        "checked_on": check.held_out,
        "n_calibration": len(model.measured),
        **{key: round(value, 4) for key, value in check.figures().items()},
        "repeatability": round(repeatability(results), 4) if ratios else None,
        "with_layers_outside": round(float((model.n_outside(candidates) > 0).mean()), 3),
        "uncompressed_ms": round(model.baseline_ms, 4),
        "n_pieces": len(model.table.pieces),
        "profile_export_cpu_s": round(read_json(folder / "profile" / "build_seconds.json")["cpu"]),
        "profile_timing_s": round(measured["seconds"]),
        "predictions_per_s": round(predictions_per_second(model, candidates)),
    }
    name = f"{plan['task'].replace(':', '_')}_{runtime}"
    (HERE / f"{name}.svg").write_text(check.svg(f"{plan['task']}, {runtime}"), encoding="utf-8")
    with (HERE / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["candidate", "measured", "predicted", "low", "high", "sum_over_layers"])
        columns = (check.measured, check.predicted, *check.interval.T, check.naive)
        for candidate, *values in zip(candidates, *columns, strict=True):
            rows.writerow([candidate.digest, *(f"{value:.5f}" for value in values)])
    add_row(row, results)
    print(json.dumps(row, indent=1))
    print(check.text())


def held_out_ratios(folder: Path, runtime: str, model: LatencyModel) -> list[tuple[Candidate, float]]:
    """Candidates that took no part in the fit, with their measured ratios; none where none were measured."""
    file = folder / "held_out" / f"{runtime}.json"
    if not file.is_file():
        return []
    asked = read_json(folder / "held_out" / "plan.json")["candidates"]
    known = {candidate.digest for candidate, _ in model.measured}
    pairs = [(Candidate.from_dict(asked[name]), ratio) for name, ratio in converged(read_json(file)).items()]
    return [(candidate, ratio) for candidate, ratio in pairs if candidate.digest not in known]


def predictions_per_second(model: LatencyModel, candidates: list[Candidate]) -> float:
    """In seconds of the processor; the first batch, which looks layers up, is not counted."""
    many = candidates * (4000 // len(candidates))
    model.predict(many)
    begin = time.process_time()
    model.predict(many)
    return len(many) / (time.process_time() - begin)


def add_row(row: dict[str, Any], results: dict[str, Any]) -> None:
    """Puts the row in the place of an earlier one of the same model and runtime."""
    file = HERE / "results.json"
    data = read_json(file) if file.is_file() else {"rows": []}
    others = [item for item in data["rows"] if (item["task"], item["runtime"]) != (row["task"], row["runtime"])]
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True)
    facts = {"commit": head.stdout.strip(), "date": results["finished"], "machine": results["device"]}
    rows = sorted([*others, {**row, **facts}], key=lambda item: (item["task"], item["runtime"]))
    command = "run.py profile, held_out, measure, report; see README.md"
    write_json(file, {**data, "command": command, "versions": describe_versions(), "rows": rows})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["profile", "held_out", "measure", "report"])
    parser.add_argument("words", nargs="+")
    parser.add_argument("--candidates", type=int, help="to write (default: 50, held out 122)")
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, help="no file is begun after so long; run again to go on")
    args = parser.parse_args()
    if args.step == "profile":
        build_profile(args.words[0], args.words[1], Path(args.words[2]), args.candidates or N_CANDIDATES)
    elif args.step == "held_out":
        build_held_out(args.words[0], args.words[1], Path(args.words[2]), args.candidates or N_HELD_OUT)
    elif args.step == "measure":
        measure(Path(args.words[0]), args.words[1], args.words[2], args.passes, args.rounds, args.seconds)
    else:
        report(Path(args.words[0]), args.words[1])
