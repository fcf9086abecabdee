"""The ablation on CIFAR-10 ResNets: searches whose evaluations are run once, kept on disk and shared by all.

    python resnets.py run resnet20 FOLDER --who tpe nsga2 random uniform --seeds 5 --trials 100
    python resnets.py sensitivity resnet56 FOLDER      each single choice alone; says what it took
    python resnets.py table resnet20 FOLDER            resnet20_table.csv.gz, all evaluations
    python resnets.py plot                             both curves, from resnets_curves.csv, which `run` fills

FOLDER gets `resnet20.jsonl`, one line for each candidate; a run that was cut off goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ablation import SAMPLERS, Floats, Problem, curve, search
from torch import nn

from autocompress.compression import CalibrationStats, RebuildOptions, rebuild, resolve
from autocompress.config import DistillSettings, SearchSettings
from autocompress.distillation.fine_tune import FastMode, FineTune, Teacher
from autocompress.errors import AutocompressError
from autocompress.execution.fisher import fisher_sensitivity
from autocompress.execution.sensitivity import Sensitivity, SensitivityProbe, measure_sensitivity
from autocompress.graph import inspect_model
from autocompress.latency import LatencyModel
from autocompress.results.records import Latency, Rung, TrialRecord
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.task import Batch, as_inputs, call_model, load_task
from autocompress.tasks import cifar10
from autocompress.tasks.cifar10 import load_images, split_indices
from autocompress.testing.replay import Evaluation, write_table

HERE = Path(__file__).parent
REFITTED = RebuildOptions(reconstruct=True)
NAMES = ("resnet20", "resnet56")
RUNGS, N_TRAINED = (0, 1), 64  # steps of the distillation, and images of a step
N_JUDGED = 300  # images of the selection split
N_CALIBRATION = 1  # batches of 64
FAST = FastMode(True)
SVG = "http://www.w3.org/2000/svg"
CURVES = HERE / "resnets_curves.csv"
COLUMNS = ("network", "sampler", "seed", "trial", "worker_seconds", "hypervolume")
COLOURS = ("#0072b2", "#56b4e9", "#999999", "#e69f00", "#009e73", "#d55e00")
FLOOR = 0.45  # half the uncompressed model's accuracy, as in a search without `--min-accuracy`


class Evaluator:
    """Evaluates candidates of one network; remembers them on disk.

    Args:
        name: "resnet20" or "resnet56".
        folder: of the file of known evaluations.
        rungs: steps of the distillation after which a candidate is judged; of (0, 1) only the last one is.
        n_judged: images of the selection split that judge it.
    """

    def __init__(self, name: str, folder: Path, rungs: tuple[int, ...] = RUNGS, n_judged: int = N_JUDGED) -> None:
        self.name, self.task, self.rungs, self.n_judged = name, load_task(f"cifar10:{name}"), rungs, n_judged
        self.model = self.task.build_model()
        self.inputs = as_inputs(self.task.example_inputs())
        self.graph = inspect_model(self.model, self.inputs)
        self.space = SearchSpace.load("resnet_cifar", self.graph)
        self.ratios = latency_of(name)
        self._path = folder / ("_".join([name, *map(str, rungs if rungs != RUNGS else ())]) + ".jsonl")
        folder.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self.known = {item["digest"]: item for item in map(json.loads, lines)}
        self.n_new = 0
        self._tools: Tools | None = None

    def __call__(self, candidate: Candidate) -> Evaluation:
        """The evaluation of a candidate, from disk if it is known.

        Raises:
            KeyError: it cannot be built.
        """
        digest = candidate.digest
        if digest not in self.known:
            self._tools = self._tools or Tools(self)
            item = {"digest": digest, "candidate": candidate.to_dict(), **self._tools.judge(candidate)}
            with self._path.open("a") as file:
                file.write(json.dumps(item) + "\n")
            self.known[digest] = item
            self.n_new += 1
        return self.evaluation(self.known[digest])

    def evaluation(self, item: dict[str, Any]) -> Evaluation:
        if "error" in item:
            raise KeyError(item["error"])
        candidate = Candidate.from_dict(item["candidate"])
        ratio = self.ratios(candidate)
        found = item.get("rungs") or [{**item, "steps": self.rungs[-1]}]
        rungs = tuple(Rung(r["steps"], {"accuracy": r["accuracy"], "loss": r["loss"]}) for r in found)
        seconds = tuple(r["seconds"] for r in found)
        return Evaluation(candidate, Latency(ratio, 0.0, ratio, 0), rungs, seconds, n_params=item["n_params"])


class Short(cifar10.Cifar10Task):
    """The same task in smaller batches."""

    def train_batches(self, seed: int) -> Iterator[Batch]:
        for inputs, labels in super().train_batches(seed):
            assert isinstance(inputs, tuple)
            yield (inputs[0][:N_TRAINED],), labels[:N_TRAINED]


class Tools:
    """What judging candidates needs: the teacher, calibration data, images."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._of = evaluator
        self._calibration = [as_inputs(i) for i in evaluator.task.calibration_batches()][:N_CALIBRATION]
        self._calibration_stats = CalibrationStats(evaluator.model, evaluator.graph, self._calibration, evaluator.task)
        self._teacher = Teacher(evaluator.model, FAST)
        images, labels = load_images("test")
        members = split_indices("selection")[: evaluator.n_judged]
        self._images = FAST.layout(cifar10._to_inputs(images[members]))
        self._labels = labels[members]

    def judge(self, candidate: Candidate) -> dict[str, Any]:
        """Compresses with closed-form repair, fine-tunes for a few steps, judges."""
        of = self._of
        torch.manual_seed(0)
        begin = time.process_time()
        try:
            recipe = resolve(of.model, of.graph, candidate, "l2", self._calibration_stats)
            student = rebuild(of.model, of.graph, recipe, self._calibration, REFITTED, self._calibration_stats)
            tune = FineTune(student, self._teacher, Short(of.name), DistillSettings(rungs=of.rungs), 0)
            rungs = []
            for steps in of.rungs if of.rungs != RUNGS else RUNGS[1:]:
                if not candidate.is_baseline:
                    tune.advance(steps)
                rungs.append({"steps": steps, **self._judged(student), "seconds": time.process_time() - begin})
        except AutocompressError as error:
            return {"error": str(error)}
        n_params = sum(parameter.numel() for parameter in student.parameters())
        return {"rungs": rungs, "n_params": n_params}

    def _judged(self, student: nn.Module) -> dict[str, float]:
        with torch.no_grad(), FAST():
            outputs = call_model(student, self._images).float()
        loss = torch.nn.functional.cross_entropy(outputs, self._labels).item()
        return {"accuracy": float((outputs.argmax(1) == self._labels).float().mean()), "loss": loss}


def latency_of(name: str) -> Callable[[Candidate], float]:
    """Ratios by the network's recorded profile."""
    profile = LatencyModel.load(HERE / f"{name}_profile.json")
    whole = float(profile.ratios([Candidate()])[0])
    return lambda candidate: float(profile.ratios([candidate])[0]) / whole


def sensitivity(evaluator: Evaluator, folder: Path, cheap: bool) -> Sensitivity:
    """Of the network, from the file here once it is known: measured, or estimated from one backward pass."""
    path = HERE / f"{evaluator.name}_sensitivity.json"
    if not path.exists():
        begin, processor = time.perf_counter(), time.process_time()
        probe = SensitivityProbe(evaluator.task, evaluator.model, evaluator.graph, SearchSettings())
        if cheap:
            of = evaluator
            found = fisher_sensitivity(of.space, of.task, of.model, of.graph, list(probe.labelled))
        else:
            found = measure_sensitivity(evaluator.space, probe, folder / "sensitivity")
        seconds = time.perf_counter() - begin, time.process_time() - processor
        print(f"{len(found.choices)} choices in {seconds[0]:.0f} s, {seconds[1]:.0f} s of processor", flush=True)
        found.write(path)
    return Sensitivity.read(path)


def run(evaluator: Evaluator, folder: Path, whom: list[str], seeds: int, n_trials: int) -> None:
    ours = any(who.startswith("solver") for who in whom)
    known = sensitivity(evaluator, folder, False) if ours else Sensitivity(0.0, ())
    problem = Problem(evaluator.space, evaluator.graph, evaluator, known, (1.0, FLOOR))
    for seed in range(seeds):
        for who in whom:
            begin, before = time.process_time(), evaluator.n_new
            records = search(problem, who, seed, n_trials)
            areas = curve(problem, records, len(records))
            shown = [round(float(areas[min(i, len(areas)) - 1]), 4) for i in (5, 10, 20, 30, 40, 60, 100)]
            add_curve(evaluator.name, who, seed, records, areas)
            took = time.process_time() - begin
            print(who, seed, shown, f"{evaluator.n_new - before} new, {took:.0f} s of processor", flush=True)


def add_curve(name: str, who: str, seed: int, records: list[TrialRecord], areas: Floats) -> None:
    """Adds one search to resnets_curves.csv, in the place of an earlier run of it: a line for each trial."""
    rows = pd.read_csv(CURVES) if CURVES.exists() else pd.DataFrame(columns=COLUMNS)
    same = (rows["network"] == name) & (rows["sampler"] == who) & (rows["seed"] == seed)
    spent = np.cumsum([sum(record.seconds.values()) for record in records]).round(2)
    new = pd.DataFrame(
        {"network": name, "sampler": who, "seed": seed, "trial": range(1, len(records) + 1), "worker_seconds": spent}
    ).assign(hypervolume=areas.round(5))
    pd.concat([rows[~same], new]).to_csv(CURVES, index=False)


def plot() -> None:
    """Medians over seeds: hypervolume over trials and over worker-seconds, one SVG for each network."""
    rows = pd.read_csv(CURVES)
    for name in NAMES:
        parts = [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 320" font-family="sans-serif" font-size="12">'
        ]
        of = rows[rows["network"] == name]
        top = float(of["hypervolume"].max())
        for place, by in enumerate(("trial", "worker_seconds")):
            parts += panel(of, by, float(of[by].max()), top, 50 + 375 * place)
        (HERE / f"{name}_curves.svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


def panel(rows: pd.DataFrame, by: str, right: float, top: float, left: float) -> Iterator[str]:
    """One pair of axes with a line for each sampler."""
    yield f'<path d="M{left} 20V270h300" fill="none" stroke="#444"/>'
    yield f'<text x="{left + 150}" y="305" text-anchor="middle">{by.replace("_", " ")}</text>'
    yield f'<text x="{left + 300}" y="285" text-anchor="end">{right:.0f}</text><text x="{left}" y="285">0</text>'
    yield f'<text x="{left - 4}" y="24" text-anchor="end">{top:.2f}</text><text x="{left}" y="14">hypervolume</text>'
    for place, who in enumerate(SAMPLERS):
        of = rows[rows["sampler"] == who]
        if of.empty:
            continue
        at = np.linspace(0, float(of.groupby("seed")[by].max().median()), 200)
        runs = [held(run[by].to_numpy(), run["hypervolume"].to_numpy(), at) for _, run in of.groupby("seed")]
        points = zip(left + 300 * at / right, 270 - 250 * np.median(runs, axis=0) / top, strict=True)
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline points="{line}" fill="none" stroke="{COLOURS[place]}" stroke-width="2"/>'
        if by == "trial":
            label = f"{who}, {len(runs)} seeds" if len(runs) > 1 else f"{who}, 1 seed"
            yield f'<text x="{left + 190}" y="{40 + 16 * place}" fill="{COLOURS[place]}">{label}</text>'


def held(at: Floats, values: Floats, wanted: Floats) -> Floats:
    """A step curve at the wanted places: the last value so far, zero before the first."""
    place = np.searchsorted(at, wanted, side="right")
    return np.concatenate([[0.0], values])[place]


def table(evaluator: Evaluator) -> None:
    items = [item for item in evaluator.known.values() if "error" not in item]
    write_table(HERE / f"{evaluator.name}_table.csv.gz", map(evaluator.evaluation, items))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "sensitivity", "table", "plot"])
    parser.add_argument("name", choices=NAMES, nargs="?")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--cheap", action="store_true", help="estimate the sensitivities from one backward pass")
    parser.add_argument("--who", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=100)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if args.what == "plot":
        plot()
        return
    evaluator = Evaluator(args.name, args.folder)
    if args.what == "run":
        run(evaluator, args.folder, args.who, args.seeds, args.trials)
    elif args.what == "table":
        table(evaluator)
    else:
        sensitivity(evaluator, args.folder, args.cheap)


if __name__ == "__main__":
    main()
