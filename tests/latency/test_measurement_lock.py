"""The lock between processes: a measurement runs alone, is not starved, and a killed holder does not block."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import pytest

from autocompress.latency import measurement_lock as lock_module
from autocompress.latency.measurement_lock import MeasurementLock

# The module is loaded from its file, so that a child starts without importing torch.
CHILD = """
import importlib.util, sys, time
from pathlib import Path
source, folder, kind, seconds, piece = sys.argv[1:]
spec = importlib.util.spec_from_file_location("measurement_lock", source)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
lock = module.MeasurementLock(Path(folder))
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + float(seconds)
while time.monotonic() < end:
    with getattr(lock, kind)():
        begin = time.monotonic()
        time.sleep(float(piece))
        line = f"{begin} {time.monotonic()}"
    print(line, flush=True)
"""
Interval = tuple[float, float]


@contextmanager
def children(folder: Path, kinds: list[str], seconds: float, piece: float) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that repeatedly take the lock in that way, once all of them are ready."""
    source = str(Path(lock_module.__file__))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, source, str(folder), kind, str(seconds), str(piece)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind in kinds
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def intervals(process: subprocess.Popen[str]) -> list[Interval]:
    output, _ = process.communicate(timeout=30)
    return [(float(begin), float(end)) for begin, end in map(str.split, output.splitlines())]


def overlap(one: Interval, other: Interval) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def test_a_measurement_never_overlaps_with_another_process(tmp_path: Path) -> None:
    kinds = ["shared"] * 3 + ["exclusive"] * 2
    with children(tmp_path, kinds, seconds=1.0, piece=0.004) as processes:
        held = [(kind, intervals(process)) for kind, process in zip(kinds, processes, strict=True)]
    assert all(len(taken) >= 3 for _, taken in held), "everyone gets the lock"
    shared = 0
    for (kind, taken), (other_kind, other_taken) in combinations(held, 2):
        n_overlaps = sum(overlap(a, b) for a in taken for b in other_taken)
        if "exclusive" in (kind, other_kind):
            assert n_overlaps == 0
        else:
            shared += n_overlaps
    assert shared > 0, "computing processes do work at the same time"


def test_a_stream_of_computing_processes_does_not_starve_a_measurement(tmp_path: Path) -> None:
    with children(tmp_path, ["shared"] * 4, seconds=8.0, piece=0.03):
        time.sleep(0.2)
        measurement_lock = MeasurementLock(tmp_path)
        for _ in range(3):
            begin = time.monotonic()
            with measurement_lock.exclusive():
                waited = time.monotonic() - begin
            assert waited < 1.0, "no longer than the pieces that are under way"


@pytest.mark.parametrize("kind", ["exclusive", "shared"])
def test_a_killed_holder_frees_the_cores(tmp_path: Path, kind: str) -> None:
    with children(tmp_path, [kind], seconds=60, piece=60) as (holder,):
        (cores,) = _wait_for_files(tmp_path, "*.cores")
        _wait_until_held(cores)
        holder.kill()
        holder.wait()
        measurement_lock = MeasurementLock(tmp_path)
        begin = time.monotonic()
        with measurement_lock.exclusive():
            pass
        assert time.monotonic() - begin < 1.0


def test_waiting_is_counted(tmp_path: Path) -> None:
    waiting, free = MeasurementLock(tmp_path), MeasurementLock(tmp_path / "another" / "place")
    measuring = threading.Event()

    def measure() -> None:
        with MeasurementLock(tmp_path).exclusive():
            measuring.set()
            time.sleep(0.3)

    thread = threading.Thread(target=measure)
    thread.start()
    measuring.wait()
    with free.exclusive():
        pass
    assert free.waited < 0.1, "other folders are other machines"
    with waiting.shared():
        assert not thread.is_alive() or waiting.waited > 0.2
    thread.join()
    assert 0.2 < waiting.waited < 2.0
    before = waiting.waited
    with waiting.exclusive():
        time.sleep(0.2)
    assert waiting.waited - before < 0.1, "holding is not waiting"


def test_the_lock_is_released_when_its_work_fails(tmp_path: Path) -> None:
    measurement_lock = MeasurementLock(tmp_path)
    for kind in (measurement_lock.shared, measurement_lock.exclusive):
        with pytest.raises(ZeroDivisionError), kind():
            raise ZeroDivisionError
    with measurement_lock.exclusive():
        pass
    assert measurement_lock.waited < 0.5


def _wait_for_files(folder: Path, pattern: str) -> list[Path]:
    for _ in range(500):
        found = list(folder.glob(pattern))
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"no {pattern}")


def _wait_until_held(file: Path) -> None:
    for _ in range(500):
        with file.open("r+b") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
        time.sleep(0.01)
    raise AssertionError("the child never took the lock")
