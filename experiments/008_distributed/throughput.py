"""Two workers against one on this machine: CPU-bound trials of one thread each, in a search and without one.

python throughput.py --repeats 2        # rows of throughput.csv: one and two workers, one and two plain processes
python throughput.py --steps 5000       # the same with trials of five times the length

Plain processes run the same trials one after the other, each pinned to a core of its own, without Ray and without a
driver: what two of them do against one is what the machine has to give.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import os
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import torch
import world  # type: ignore[import-not-found]  # tests/execution/chaos, by PYTHONPATH

from autocompress.api import run_new
from autocompress.config import SearchSettings
from autocompress.execution.preparation import prepare
from autocompress.execution.trial import Trial, TrialPlan, WorkerContext
from autocompress.report.status import events_of
from autocompress.results.records import read_records
from autocompress.results.run_folder import RunFolder

HERE = Path(__file__).parent
N_TRIALS, N_PLAIN = 25, 12
STEPS = 1000  # of fine-tuning: 0.7 s on one core; the clocks are still, so that nothing waits for the lock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"fine-tune steps of a trial (default: {STEPS})")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for _, measure, n in itertools.product(range(args.repeats), (plain, search), (1, 2)):
        row = {"how": measure.__name__, "steps": args.steps, "workers": n, **measure(n, args.steps)}
        file = HERE / "throughput.csv"
        new = not file.exists()
        with file.open("a", newline="") as opened:
            writer = csv.DictWriter(opened, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)


class ProcessorTime:
    """Processor seconds of this process and of all that it started, sampled; a context manager."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float, dict[tuple[int, str], float]]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> ProcessorTime:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        me = psutil.Process()
        while not self._over.wait(0.25):
            now = {}
            for process in (me, *me.children(recursive=True)):
                try:
                    times = process.cpu_times()
                    now[process.pid, _role(process, me)] = times.user + times.system
                except psutil.NoSuchProcess:
                    continue
            self._samples.append((time.time(), _busy_seconds(), now))

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Seconds of the driver, of the workers, of Ray's own processes, and of all others on the machine."""
        first, last = (min(self._samples, key=lambda sample: abs(sample[0] - at)) for at in (begin, end))
        spent: dict[str, float] = defaultdict(float)
        for (pid, role), seconds in last[2].items():
            spent[role] += seconds - first[2].get((pid, role), 0.0)
        spent["others"] = last[1] - first[1] - sum(spent.values())
        return spent


def _busy_seconds() -> float:
    """Of all cores, whoever's."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def _role(process: psutil.Process, me: psutil.Process) -> str:
    if process.pid == me.pid:
        return "driver"
    line = " ".join(process.cmdline())
    working = line.startswith("ray::") and not line.startswith("ray::IDLE")
    return "workers" if working or "multiprocessing" in line else "ray"


def plain(n_processes: int, steps: int) -> dict[str, float]:
    """As many processes as given; the first two trials of each are not counted."""
    context = multiprocessing.get_context("spawn")
    begin, ends = context.Barrier(n_processes + 1), context.Queue()
    processes = [context.Process(target=_in_turn, args=(core, steps, begin, ends)) for core in range(n_processes)]
    with ProcessorTime() as processor:
        for process in processes:
            process.start()
        begin.wait()
        began = time.time()
        elapsed = [ends.get() for _ in processes]
        spent = processor.between(began, began + max(elapsed))
        for process in processes:
            process.join()
    n = n_processes * N_PLAIN
    return _row(n, max(elapsed), sum(elapsed), n_processes, spent)


def _in_turn(core: int, steps: int, begin: Any, ends: Any) -> None:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    task = world.World(pause=0.0)
    space = world.space_of(task.build_model())
    worker_context = WorkerContext(prepare(task, space, settings(1, steps), None).context)
    for seed in range(N_PLAIN + 2):
        if seed == 2:
            begin.wait()
            began = time.time()
        trial = Trial.begin(worker_context, TrialPlan(space.sample(seed)))
        while not trial.done:
            trial.step()
        trial.files()
    ends.put(time.time() - began)
    worker_context.close()


def settings(n_workers: int, steps: int) -> SearchSettings:
    found: SearchSettings = world.settings(
        N_TRIALS, n_workers=n_workers, distill={"rungs": [0, steps // 2, steps], "learning_rate": 0.001}
    )
    return found


def search(n_workers: int, steps: int) -> dict[str, float]:
    """One search; the first two trials of each worker, which load everything, are not counted."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        task = world.World(pause=0.0)
        with ProcessorTime() as processor:
            run_new(
                task, settings(n_workers, steps), run, space=world.space_of(task.build_model()), show_progress=False
            )
        seconds = {record.number: sum(record.seconds.values()) for record in read_records(run / "trials.jsonl")}
        ends = [
            (datetime.fromisoformat(event["time"]).timestamp(), event["trial"])
            for event in events_of(RunFolder(run))
            if event["event"] == "complete"
        ]
    counted = sorted(ends)[2 * n_workers - 1 :]
    elapsed, n = counted[-1][0] - counted[0][0], len(counted) - 1
    spent = processor.between(counted[0][0], counted[-1][0])
    at_work = sum(seconds[number] for _, number in counted[1:])
    return _row(n, elapsed, at_work, n_workers, spent)


COLUMNS = (
    *(
        "how",
        "steps",
        "workers",
        "trials",
        "seconds",
        "trials_per_second",
        "seconds_at_work_per_trial",
        "overhead_ms_per_trial",
    ),
    *("workers_cpu_ms_per_trial", "driver_cpu_ms_per_trial", "ray_cpu_ms_per_trial", "others_percent_of_a_core"),
)


def _row(n: int, elapsed: float, at_work: float, n_workers: int, spent: dict[str, float]) -> dict[str, float]:
    return {
        "trials": n,
        "seconds": round(elapsed, 3),
        "trials_per_second": round(n / elapsed, 4),
        "seconds_at_work_per_trial": round(at_work / n, 4),
        "overhead_ms_per_trial": round(1e3 * (elapsed * n_workers - at_work) / n, 1),
        **{f"{role}_cpu_ms_per_trial": round(1e3 * spent[role] / n, 1) for role in ("workers", "driver", "ray")},
        "others_percent_of_a_core": round(100 * spent["others"] / elapsed, 1),
    }


if __name__ == "__main__":
    main()
