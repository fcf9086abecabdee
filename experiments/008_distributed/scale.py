"""How many workers one driver keeps busy: the real study, searcher, records and progress, against made-up evaluations.

python scale.py busy --workers 512 --trials 5000        # one row of busy.csv
python scale.py cost --trials 20000                     # cost.csv: ask and tell, memory, as the study grows
python scale.py reopen --trials 20000                   # time and memory of a resume
python scale.py plot                                    # scaling.svg from both
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ray.tune.experiment import Experiment, Trial
from ray.tune.registry import register_trainable
from ray.tune.search import SearchGenerator

from autocompress.compression.pipeline import UNCOMPRESSED
from autocompress.execution.abort_stopper import AbortStopper
from autocompress.execution.checkpoint_callback import CheckpointCallback
from autocompress.execution.optuna_searcher import OptunaSearcher
from autocompress.execution.planning import planner_of
from autocompress.execution.progress import SearchProgress
from autocompress.execution.retry_callback import RetryCallback
from autocompress.execution.run_clock import RunClock
from autocompress.execution.sensitivity import ChoiceLoss, Sensitivity, single_choices
from autocompress.execution.trial import Outcome
from autocompress.execution.trial_queue import Limits, TrialQueue
from autocompress.execution.worker import Worker
from autocompress.graph import inspect_model
from autocompress.latency.online_predictor import LaunchLatencyModel, OnlineLatencyPredictor
from autocompress.results.objectives import Objectives
from autocompress.results.records import Latency, Rung, TrialRecord
from autocompress.results.run_folder import RunFolder
from autocompress.sampling.early_stopping import ParetoEarlyStopping
from autocompress.sampling.samplers import PLANNED, planned, sampler_named
from autocompress.sampling.study import Asked, SearchStudy
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace
from autocompress.tasks.cifar10 import CifarResNet
from autocompress.testing.replay import Evaluation, replay

HERE = Path(__file__).parent
TRIAL_SECONDS = 30.0
BUDGET = 0.5
N_MEASURED = 32


class World:
    """ResNet-20 (its graph, no data) in the default space; latency as the launch model guesses, accuracy by sums."""

    def __init__(self) -> None:
        self.graph = inspect_model(CifarResNet(3).eval(), (torch.zeros(1, 3, 32, 32),))
        self.space = SearchSpace.load("default", self.graph)
        self._model = LaunchLatencyModel(self.graph)
        rng = random.Random(0)
        self._increase = {(k.kind, k.target, c): rng.uniform(0, 0.02) for k, c, _ in single_choices(self.space)}

    def sensitivity(self) -> Sensitivity:
        return Sensitivity(0.3, tuple(ChoiceLoss(*key, value) for key, value in self._increase.items()))

    def evaluate(self, candidate: Candidate) -> Evaluation:
        """With a little noise that is the candidate's own; 30 s a trial, give or take."""
        rng = random.Random(candidate.digest)
        chosen = self.space.choices_of(candidate)
        taken = [(knob.kind, knob.target, chosen[knob.name]) for knob in self.space.knobs]
        accuracy = 0.92 - sum(self._increase.get(key, 0.0) for key in taken) + rng.gauss(0, 0.002)
        ratio = max(0.05, float(self._model.ratios([candidate])[0]) * rng.gauss(1, 0.02))
        end = TRIAL_SECONDS * rng.uniform(0.8, 1.2)
        rungs = tuple(Rung(n, {"accuracy": accuracy - 0.1 / (1 + n), "loss": 1.0}) for n in (0, 20, 60, 180))
        seconds = tuple(end * share for share in (0.2, 0.4, 0.7, 1.0))
        return Evaluation(candidate, Latency(ratio, 0.01, 2 * ratio, 9), rungs, seconds, 1.0, 100, 1000)


class TuneTrials:
    """Ray Tune's own trials, made by its generator and kept until the search ends, as its controller keeps them."""

    def __init__(self, searcher: OptunaSearcher, folder: Path) -> None:
        register_trainable("worker", Worker)
        self._generator = SearchGenerator(searcher)
        self._keeper = CheckpointCallback(RunFolder(folder), AbortStopper(), RetryCallback(searcher.on_trial_lost))
        self._folder = folder
        self._trials: dict[int, Trial] = {}
        experiment = Experiment(
            "tune",
            "worker",
            num_samples=10**9,
            storage_path=str(folder / "tune"),
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
            max_failures=3,
        )
        self._generator.add_configurations(experiment)

    def ask(self) -> dict[str, Any] | None:
        """A new trial's config."""
        trial = self._generator.next_trial()
        if trial is None:
            return None
        trial.create_placement_group_factory()
        trial.set_status(Trial.RUNNING)
        self._trials[trial.config["number"]] = trial
        return dict(trial.config)

    def tell(self, number: int, rungs: Sequence[Rung], outcome: str) -> None:
        """Ends a trial after a report of each rung, which shares nothing with what the driver has already."""
        trial = self._trials[number]
        result: dict[str, Any] = {}
        for i, rung in enumerate(rungs):
            done = i == len(rungs) - 1
            report = {"steps": rung.steps, "latency_ratio": 0.4, "metrics": dict(rung.metrics), "done": done}
            report["outcome" if done else "so_far"] = outcome
            clock = {"date": "2026-01-01", "timestamp": number, "time_this_iter_s": 7.0, "time_total_s": 7.0 * i}
            counts = {"training_iteration": i + 1, "iterations_since_restore": i + 1, "timesteps_total": None}
            place = {"hostname": "host", "node_ip": "127.0.0.1", "pid": 1, "trial_id": trial.trial_id}
            auto = {**clock, **counts, **place, "experiment_tag": trial.experiment_tag, "config": trial.config}
            result = json.loads(json.dumps({**report, **auto}))
            self._keeper.on_trial_result(0, [], trial, result)
            trial.update_last_result(result)
        self._generator.on_trial_complete(trial.trial_id, result)
        self._keeper.on_trial_complete(0, [], trial)
        trial.set_status(Trial.TERMINATED)

    def end(self) -> None:
        """What Tune does when a search ends: it writes the state of all its trials."""
        states = [trial.get_json_state() for trial in self._trials.values()]
        with (self._folder / "experiment_state.json").open("w") as file:
            json.dump({"trial_data": states}, file)


def _name_of(trial: Trial) -> str:
    return str(trial.config["name"])


class Driver:
    """What `replay` asks and tells, the way Ray Tune asks and tells the searcher."""

    objectives = Objectives("accuracy", latency_budgets=(BUDGET,))

    def __init__(self, world: World, folder: Path, sampler: str) -> None:
        self._world, self._latency_predictor = world, OnlineLatencyPredictor(LaunchLatencyModel(world.graph))
        screening_ratio = self._latency_predictor.screening_ratio
        first = sampler_named("random", 0)
        self.study = SearchStudy(folder / "study.journal", world.space, first, self.objectives, screening_ratio)
        self.use(sampler)
        self._progress = SearchProgress([], 10**6, None, Objectives("accuracy", "maximize", 2.0, (BUDGET,)), None)
        queue = TrialQueue(
            self.study,
            folder / "trials.jsonl",
            Limits(RunClock(None, 0.0)),
            AbortStopper(),
            run_seconds=lambda: 0.0,
            listener=self._finished,
        )
        self.tune = TuneTrials(OptunaSearcher(queue), folder)
        self.judged = self.study.judged
        self.seconds: list[tuple[float, float]] = []
        self._asking: dict[int, float] = {}

    def use(self, sampler: str) -> None:
        """The default one gets its plan, as in a real search."""
        if sampler == PLANNED:
            self.study.use(planned(planner_of(self.study, self._world.sensitivity(), self._latency_predictor), 0))
        else:
            self.study.use(sampler_named(sampler, 1))

    def _finished(self, record: TrialRecord) -> None:
        self._latency_predictor.learn(record)
        self._progress.finished(record)

    def ask(self) -> Asked | None:
        begin = time.perf_counter()
        config = self.tune.ask()
        if config is None:
            return None
        self._asking[config["number"]] = time.perf_counter() - begin
        return Asked(config["number"], Candidate.from_dict(json.loads(config["candidate"])), "sampler")

    def tell(self, record: TrialRecord) -> None:
        outcome = Outcome(
            metrics=record.metrics,
            latency=_some(record.latency),
            fine_tuned=True,
            n_params=100,
            n_macs=1000,
            size_mib=1.0,
            sparse_size_mib=None,
            rungs=record.rungs,
            seconds=dict(record.seconds),
            parent=UNCOMPRESSED,
        )
        text = json.dumps(asdict(outcome))
        begin = time.perf_counter()
        self.tune.tell(record.number, record.rungs, text)
        self.seconds.append((self._asking.pop(record.number), time.perf_counter() - begin))


def _some(latency: Latency | None) -> Latency:
    assert latency is not None
    return latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["busy", "cost", "reopen", "plot"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--sampler", default="solver")
    parser.add_argument("--early-stopping", action="store_true")
    args = parser.parse_args()
    if args.what == "plot":
        plot()
    else:
        {"busy": busy, "cost": cost, "reopen": open_run}[args.what](args)


def busy(args: argparse.Namespace) -> None:
    """The share of worker time spent on trials; the driver's own seconds pass in virtual time, one call at a time."""
    with tempfile.TemporaryDirectory() as name:
        world = World()
        driver = Driver(world, Path(name), args.sampler)
        cpu = time.process_time()
        stopping = (
            ParetoEarlyStopping(Objectives("accuracy", latency_budgets=(BUDGET,))) if args.early_stopping else None
        )
        records = replay(driver, world.evaluate, args.trials, args.workers, stopping, driver_counts=True)  # type: ignore[arg-type]
        cpu = time.process_time() - cpu
        journal = (Path(name) / "study.journal").stat().st_size
    # the start, when the first trials are asked for one by one, and the end, when workers run out, are cut off
    begin, end = sorted(record.started for record in records)[args.workers - 1], max(r.started for r in records)
    begin = min(begin, end / 2)
    worked = sum(max(0.0, min(r.ended, end) - max(r.started, begin)) for r in records)
    ask, tell = zip(*driver.seconds, strict=True)
    n = len(ask)
    row = {
        "sampler": args.sampler + (", early stopping" if args.early_stopping else ""),
        "workers": args.workers,
        "trials": n,
        "virtual_hours": round(max(r.ended for r in records) / 3600, 3),
        "busy_percent": round(100 * worked / ((end - begin) * args.workers), 2),
        "driver_busy_percent": round(100 * (sum(ask) + sum(tell)) / max(r.ended for r in records), 2),
        "ask_ms": round(1e3 * sum(ask) / n, 2),
        "tell_ms": round(1e3 * sum(tell) / n, 2),
        "ask_ms_last_tenth": round(1e3 * sum(ask[-n // 10 :]) / len(ask[-n // 10 :]), 2),
        "cpu_seconds": round(cpu, 1),
        "rss_mib": _peak_mib(),
        "journal_mib": round(journal / 2**20, 1),
    }
    add(HERE / "busy.csv", row)


def cost(args: argparse.Namespace) -> None:
    """Ask and tell of every sampler as the study grows; it grows by random proposals, which are cheap."""
    with tempfile.TemporaryDirectory() as name:
        world = World()
        driver = Driver(world, Path(name), "random")
        n_done = 0
        for n in (100, 1000, 5000, 10000, 20000):
            if n > args.trials:
                break
            while n_done < n:
                driver.tell(record_of(world, driver.ask()))
                n_done += 1
            for sampler in ("random", "solver", "tpe", "nsga2"):
                driver.use(sampler)
                for i in range(N_MEASURED + 1):
                    driver.tell(record_of(world, driver.ask()))
                    if i == 0:  # a sampler takes the old trials in once
                        driver.seconds.clear()
                        n_proposals = driver.study.next_number
                n_done += N_MEASURED + 1
                ask, tell = ([1e3 * value for value in column] for column in zip(*driver.seconds, strict=True))
                row = {
                    "trials": n,
                    "sampler": sampler,
                    "proposals_per_ask": round((driver.study.next_number - n_proposals) / N_MEASURED, 2),
                    "ask_ms_median": round(statistics.median(ask), 2),
                    "ask_ms_mean": round(statistics.mean(ask), 2),
                    "tell_ms_median": round(statistics.median(tell), 2),
                    "tell_ms_mean": round(statistics.mean(tell), 2),
                    "rss_mib": _peak_mib(),
                    "journal_mib": round((Path(name) / "study.journal").stat().st_size / 2**20, 1),
                }
                add(HERE / "cost.csv", row)
            driver.use("random")
            driver.seconds.clear()
        driver.tune.end()
        print("after Tune's end:", _peak_mib(), "MiB")
        _reopen(Path(name))


def open_run(args: argparse.Namespace) -> None:
    """A study of so many trials is opened again, as `resume` does; in a process of its own, as memory only grows."""
    with tempfile.TemporaryDirectory() as name:
        world = World()
        driver = Driver(world, Path(name), "random")
        for _ in range(args.trials):
            driver.tell(record_of(world, driver.ask()))
        _reopen(Path(name))


def _reopen(folder: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; import scale; "
        "world = scale.World(); begin = time.perf_counter(); "
        "driver = scale.Driver(world, Path(sys.argv[1]), 'random'); "
        "print(driver.study.n_finished, 'trials read in', round(time.perf_counter() - begin, 1), 's, peak',"
        " scale._peak_mib(), 'MiB')"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=HERE)


def _peak_mib() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def plot() -> None:
    """Busy share and driver share over the number of workers, as an SVG without a plot library."""
    rows = list(csv.DictReader((HERE / "busy.csv").open()))
    xs = {n: 70 + 100 * i for i, n in enumerate(sorted({int(row["workers"]) for row in rows}))}
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 300" font-family="sans-serif" font-size="12">',
        '<rect width="640" height="300" fill="white"/>',
    ]
    for percent in (0, 25, 50, 75, 95, 100):
        y = 250 - 2 * percent
        parts.append(
            f'<line x1="50" y1="{y}" x2="560" y2="{y}" stroke="#ddd"/><text x="20" y="{y + 4}">{percent}</text>'
        )
    for n, x in xs.items():
        parts.append(f'<text x="{x}" y="268" text-anchor="middle">{n}</text>')
    parts.append('<text x="300" y="290" text-anchor="middle">simulated workers, 30 s a trial</text>')
    colours = iter(("#1b6ca8", "#c8553d", "#4c956c", "#8d6a9f", "#333333", "#b08900"))
    y_legend = 20
    for sampler in sorted({row["sampler"] for row in rows}):
        for column, what in (("busy_percent", "workers busy"), ("driver_busy_percent", "driver busy")):
            colour = next(colours)
            points = sorted((int(row["workers"]), float(row[column])) for row in rows if row["sampler"] == sampler)
            line = " ".join(f"{xs[n]},{250 - 2 * value:.1f}" for n, value in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts.append(f'<text x="390" y="{y_legend}" fill="{colour}">{sampler}: {what}, %</text>')
            y_legend += 15
    (HERE / "scaling.svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


def record_of(world: World, asked: Asked | None) -> TrialRecord:
    assert asked is not None
    found = world.evaluate(asked.candidate)
    metrics = found.rungs[-1].metrics
    return TrialRecord(
        asked.number, "complete", asked.origin, asked.candidate, metrics, found.latency, rungs=found.rungs
    )


def add(file: Path, row: dict[str, Any]) -> None:
    new = not file.exists()
    with file.open("a", newline="") as opened:
        writer = csv.DictWriter(opened, row)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


if __name__ == "__main__":
    main()
