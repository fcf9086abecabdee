"""Two workers against one on this machine: CPU-bound trials of one thread each, through the whole search.

python throughput.py --repeats 2        # throughput.csv: a row per search
"""

from __future__ import annotations

import argparse
import csv
import itertools
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import psutil
import world

from autocompress.automl import run_new
from autocompress.records import read_records
from autocompress.report.status import events_of
from autocompress.run_folder import RunFolder

HERE = Path(__file__).parent
N_TRIALS = 25
RUNGS = [0, 500, 1000]  # a bit over a second on one core; the clocks are still, so that nothing waits for a turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with (HERE / "throughput.csv").open("w", newline="") as file:
        writer = None
        for _, n_workers in itertools.product(range(args.repeats), (1, 2)):
            row = measure(n_workers)
            writer = writer or csv.DictWriter(file, row)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            print(row, flush=True)


class ProcessorTime:
    """Processor seconds of this process and of all that it started, sampled; a context manager."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, dict[tuple[int, str], float]]] = []
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
            self._samples.append((time.time(), now))

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Seconds of the driver, of the workers and of Ray's own processes."""
        first, last = (min(self._samples, key=lambda sample: abs(sample[0] - at))[1] for at in (begin, end))
        spent: dict[str, float] = defaultdict(float)
        for (pid, role), seconds in last.items():
            spent[role] += seconds - first.get((pid, role), 0.0)
        return spent


def _role(process: psutil.Process, me: psutil.Process) -> str:
    if process.pid == me.pid:
        return "driver"
    return "workers" if "Trainable" in " ".join(process.cmdline()[:1]) else "ray"


def measure(n_workers: int) -> dict[str, float]:
    """One search; the first two trials of each worker, which load everything, are not counted."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        task = world.World(pause=0.0)
        settings = world.settings(N_TRIALS, n_workers=n_workers, distill={"rungs": RUNGS, "learning_rate": 0.001})
        with ProcessorTime() as processor:
            run_new(task, settings, run, space=world.space_of(task.build_model()), show_progress=False)
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
    return {
        "workers": n_workers,
        "trials": n,
        "seconds": round(elapsed, 3),
        "trials_per_second": round(n / elapsed, 4),
        "seconds_at_work_per_trial": round(at_work / n, 4),
        "overhead_ms_per_trial": round(1e3 * (elapsed * n_workers - at_work) / n, 1),
        **{f"{role}_cpu_ms_per_trial": round(1e3 * spent[role] / n, 1) for role in ("workers", "driver", "ray")},
    }


if __name__ == "__main__":
    main()
