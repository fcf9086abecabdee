"""Trials on a real Ray: what travels, what is restarted, what stops a search, who listens, what is logged."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from torch import Tensor

from autocompress.api import resume, run_new
from autocompress.config import SearchSettings
from autocompress.errors import InputError, MissingDataError, WorkerError
from autocompress.execution import ray_backend as engine
from autocompress.execution.optuna_searcher import OptunaSearcher
from autocompress.execution.ray_backend import ray_cluster
from autocompress.execution.sensitivity import Effort, SensitivityProbe, measure_sensitivity
from autocompress.graph import inspect_model
from autocompress.publishing.artifact import load_student
from autocompress.report.status import status_lines
from autocompress.results.pareto import front_of
from autocompress.results.records import TrialRecord, read_records
from autocompress.results.run_folder import RunFolder
from autocompress.task import Inputs

CHAOS = Path(__file__).with_name("chaos")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Ray of this process for all searches here, with a resource of the device's name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CHAOS)
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{CHAOS}")
        import world

        with (
            world.clocks_go_on_afterwards(),
            tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,  # socket paths must be short
        ):
            ray.init(
                address="local",
                num_cpus=2,
                resources={"device": 1},
                include_dashboard=False,
                log_to_driver=False,
                _node_ip_address="127.0.0.1",
                _temp_dir=folder,
            )
            yield world
            ray.shutdown()


def search(world: Any, run: Path, task: Any, n_trials: int = 6, **more: Any) -> list[TrialRecord]:
    settings = world.settings(n_trials, **more)
    run_new(task, settings, run, space=world.space_of(task.build_model()), show_progress=False)
    return read_records(run / "trials.jsonl")


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunFolder(run).events.read_text().splitlines()]


def test_choices_judged_on_workers_cost_what_they_cost_here(world: Any, tmp_path: Path) -> None:
    task = world.World(pause=0.0)
    model = task.build_model()
    make = partial(SensitivityProbe, task, model, inspect_model(model, task.example_inputs()), world.settings(2))
    space = world.space_of(model)
    here = measure_sensitivity(space, make(), tmp_path / "here")
    assert len({choice.loss_increase for choice in here.choices}) > 3
    assert measure_sensitivity(space, make(), tmp_path / "there", make, Effort(n_workers=2)) == here


def test_the_job_travels_once_and_what_happened_is_told(world: Any, tmp_path: Path) -> None:
    counter = tmp_path / "pickled"

    class Counted(world.World):  # type: ignore[misc,name-defined]
        def __getstate__(self) -> dict[str, Any]:
            with counter.open("a") as file:
                file.write("x")
            return dict(self.__dict__)

    pytest.importorskip("tensorboardX", reason="the extra `tensorboard`")
    run = tmp_path / "run"
    records = search(world, run, Counted(0.0), n_trials=8, loggers=["tensorboard"])
    assert [record.state for record in records] == ["complete"] * 8
    assert len(counter.read_text()) == 1, "for eight trials on two workers"
    told = events(run)
    assert Counter(event["event"] for event in told) == {"started": 7, "rung": 28, "complete": 7}
    assert len({event["pid"] for event in told if event["event"] == "rung"}) <= 2, "workers are kept"
    assert all(set(event) >= {"time", "event", "trial"} for event in told)
    steps = [event["steps"] for event in told if event["event"] == "rung" and event["trial"] == records[-1].number]
    assert steps == [0, 2, 4, 6]
    logged = {path.name for path in (run / "tensorboard").iterdir()}
    assert logged == {record.name for record in records[1:]}
    assert all(list((run / "tensorboard" / name).glob("events.out*")) for name in logged)
    assert status_lines(RunFolder(run))[0] == f"{run}: world, done"
    assert status_lines(RunFolder(run))[1] == "trials   8 of 8"


def test_one_worker_and_one_seed_give_the_same_trials(world: Any, tmp_path: Path) -> None:
    def trials(name: str, seed: int) -> list[tuple[str, str, dict[str, float]]]:
        how = {"n_workers": 1, "sampler": "solver", "seed": seed, "distill": {"rungs": [0, 2]}}
        records = search(world, tmp_path / name, world.World(0.0), n_trials=8, **how)
        return [(record.origin, record.candidate.digest, dict(record.metrics)) for record in records]

    first = trials("first", 1)
    assert {origin for origin, _, _ in first} == {"baseline", "uniform", "solver", "sampler"}
    assert trials("again", 1) == first
    assert trials("other", 2) != first


def test_a_trial_that_was_stopped_early_is_a_point_like_any_other(world: Any, tmp_path: Path) -> None:
    run, task = tmp_path / "run", world.World(pause=0.0)
    records = search(world, run, task, n_trials=16, early_stopping=True)
    stopped = [record for record in records if record.state == "stopped"]
    assert stopped and all(len(record.rungs) < 4 for record in stopped)
    model = task.build_model()
    graph = inspect_model(model, task.example_inputs())
    for record in stopped:
        student, _ = load_student(RunFolder(run).trial(record.name), model, graph)
        assert task.evaluate(lambda inputs, own=student: own(*inputs), "selection") == record.metrics
    assert not list((run / "states").glob("*")), "what is over leaves no state"


def test_one_search_serves_several_latency_budgets_within_the_others(
    world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = world.World(0.0)
    whole = 4 * sum(parameter.numel() for parameter in task.build_model().parameters()) / 2**20
    limits = {"latency_budget": "0.6x,0.95x", "min_accuracy": 0.3, "memory_budget_mib": 10_000.0}
    how = {"n_workers": 2, "sampler": "solver", "distill": {"rungs": [0, 2]}, **limits}
    settings = world.settings(14, **how, size_budget_mib=4 * whole)  # a traced file holds its program too
    front = run_new(task, settings, tmp_path / "run", space=world.space_of(task.build_model()))
    ratios = [point.latency.ratio for point in front.points if point.latency is not None]
    assert not front.reason and max(ratios) <= 0.95 and min(ratios) <= 0.6
    assert all(point.file is not None and point.file.size_mib <= 4 * whole for point in front.points)
    said = capsys.readouterr()
    best = {
        budget: max((p for p, r in zip(front.points, ratios, strict=True) if r <= budget), key=_accuracy).name
        for budget in (0.6, 0.95)
    }
    for budget, name in best.items():
        assert f"within {budget}x: {name}, accuracy" in said.out + said.err


def _accuracy(point: TrialRecord) -> float:
    assert point.file is not None
    return point.file.metrics["selection"]["accuracy"]


def test_a_trial_that_dies_goes_on_from_its_last_rung_on_another_worker(world: Any, tmp_path: Path) -> None:
    class Deadly(world.World):  # type: ignore[misc,name-defined]
        """Kills its worker in the third rung of the first trial, once."""

        def __init__(self, mark: Path) -> None:
            super().__init__(0.0)
            self.mark, self.n_judged = mark, 0

        def evaluate(self, predict: Callable[[Inputs], Tensor], split: str) -> dict[str, float]:
            if ray.get_runtime_context().get_actor_id():
                self.n_judged += 1
                if self.n_judged == 3 and not self.mark.exists():
                    self.mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            figures: dict[str, float] = super().evaluate(predict, split)
            return figures

    run = tmp_path / "run"
    records = search(world, run, Deadly(tmp_path / "mark"), n_trials=3, n_workers=1)
    assert [record.state for record in records] == ["complete"] * 3
    told = [event for event in events(run) if event["trial"] == records[1].number]
    assert [event["event"] for event in told] == [
        "started", "rung", "rung", "restarted", "started", "rung", "rung", "complete",
    ]  # fmt: skip
    assert [event["steps"] for event in told if event["event"] == "rung"] == [0, 2, 4, 6], "no rung twice"
    assert "died" in told[3]["reason"]
    assert len({event["pid"] for event in told if event["event"] == "rung"}) == 2
    assert [rung.steps for rung in records[1].rungs] == [0, 2, 4, 6]


def test_a_worker_that_died_between_two_trials_costs_no_trial(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, ask = tmp_path / "run", OptunaSearcher.suggest
    killed: list[int] = []

    def kill_and_ask(searcher: OptunaSearcher, trial_id: str) -> dict[str, Any] | None:
        """The only worker has no trial now, and is kept for the next one."""
        if len(killed) < 2 and RunFolder(run).events.is_file():
            pids = {event["pid"] for event in events(run) if event["event"] == "rung"} - set(killed)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            killed.extend(pids)
        return ask(searcher, trial_id)

    monkeypatch.setattr(OptunaSearcher, "suggest", kill_and_ask)
    records = search(world, run, world.World(0.0), n_trials=5, n_workers=1, trial_retries=1)
    assert [record.state for record in records] == ["complete"] * 5
    told = events(run)
    lost = [event for event in told if event["event"] == "restarted"]
    assert len(killed) == 2
    assert [event["n_failures"] for event in lost] == [1, 1]
    assert all("its worker died before it began" in event["reason"] and "died" in event["reason"] for event in lost)
    counts = Counter(event["event"] for event in told)
    assert counts == {"started": 4, "rung": 16, "complete": 4, "restarted": 2}


def test_a_trial_whose_worker_always_dies_is_a_failed_one_and_the_search_goes_on(world: Any, tmp_path: Path) -> None:
    class Poison(world.World):  # type: ignore[misc,name-defined]
        """Large candidates kill the worker, as if memory had run out."""

        def train_batches(self, seed: int) -> Iterator[Any]:
            if ray.get_runtime_context().get_actor_id() and self.poisoned.exists():
                self.poisoned.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().train_batches(seed)  # type: ignore[no-any-return]

    task = Poison(0.0)
    task.poisoned = tmp_path / "poisoned"
    task.poisoned.touch()
    run = tmp_path / "run"
    records = search(world, run, task, n_trials=4, n_workers=1, trial_retries=0)
    assert [record.state for record in records].count("failed") == 1
    (error,) = [record.error for record in records if record.error]
    assert error.startswith("the worker process died, and so did every retry") and "\n" not in error
    assert len(records) == 4
    assert any("trouble" in line and "1 in all" in line for line in status_lines(RunFolder(run)))


GREEDY = """
import os, sys, time
from pathlib import Path
import numpy as np
import psutil

memory = psutil.virtual_memory()
os.environ["RAY_memory_usage_threshold"] = str(1 - (memory.available - 3e9) / memory.total)
os.environ["RAY_memory_monitor_refresh_ms"] = "100"
import ray, world
from autocompress.api import run_new

class Greedy(world.World):
    def evaluate(self, predict, split):
        mark = self.folder / "greedy"
        if ray.get_runtime_context().get_actor_id() and not mark.exists():
            mark.touch()
            hoard = []
            while True:
                hoard.append(np.ones(2**23))
                time.sleep(0.05)
        return super().evaluate(predict, split)

task = Greedy(0.0)
task.folder = Path(sys.argv[1])
settings = world.settings(4, n_workers=1, trial_retries=5)
run_new(task, settings, task.folder / "run", space=world.space_of(task.build_model()), show_progress=False)
"""


@pytest.mark.slow  # fills three gigabytes
def test_a_worker_that_runs_out_of_memory_is_ended_by_ray_and_the_search_goes_on(world: Any, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GREEDY, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [record.state for record in read_records(tmp_path / "run" / "trials.jsonl")] == ["complete"] * 4
    reasons = [event["reason"] for event in events(tmp_path / "run") if event["event"] == "restarted"]
    assert any("low on memory" in reason for reason in reasons)


@pytest.mark.slow  # three starts of Ray
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are read from /proc")
@pytest.mark.parametrize("pause", [0.3, 2.0])
def test_ctrl_c_twice_leaves_nothing_and_the_run_goes_on(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    run, n_trials = tmp_path / "run", 30
    command = [sys.executable, str(CHAOS / "world.py"), str(run), "", str(n_trials)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (run / "trials.jsonl").is_file() or len(read_records(run / "trials.jsonl")) < 3:
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.05)
    for _ in range(2):
        driver.send_signal(signal.SIGINT)
        time.sleep(pause)
    driver.communicate(timeout=300)
    deadline = time.monotonic() + 60
    while (left := marked_processes(f"TMPDIR={tmp_path / 'tmp'}")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    before = len(read_records(run / "trials.jsonl"))
    assert before < n_trials
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [record.state for record in read_records(run / "trials.jsonl")] == ["complete"] * n_trials
    assert list((tmp_path / "tmp").glob("autocompress-*")) == []


def marked_processes(variable: str) -> list[str]:
    """Command lines of the processes with this environment variable, without this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(path.name) != os.getpid() and variable.encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if line]


def test_a_trial_that_asks_for_more_memory_than_it_may_have_is_a_failed_one(world: Any, tmp_path: Path) -> None:
    class Limited(world.World):  # type: ignore[misc,name-defined]
        """The first trial asks for a terabyte, once, and Python refuses."""

        def evaluate(self, predict: Callable[[Inputs], Tensor], split: str) -> dict[str, float]:
            if ray.get_runtime_context().get_actor_id() and not self.mark.exists():
                self.mark.touch()
                limits = resource.getrlimit(resource.RLIMIT_AS)
                resource.setrlimit(resource.RLIMIT_AS, (2**38, limits[1]))
                try:
                    bytearray(2**40)
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, limits)
            figures: dict[str, float] = super().evaluate(predict, split)
            return figures

    task = Limited(0.0)
    task.mark = tmp_path / "mark"
    run = tmp_path / "run"
    records = search(world, run, task, n_trials=3, n_workers=1)
    assert [record.state for record in records].count("failed") == 1 and len(records) == 3
    assert "MemoryError" in next(str(record.error) for record in records if record.state == "failed")


@pytest.mark.slow  # waits for a time limit
def test_a_hanging_trial_and_a_raising_one_fail_and_the_search_goes_on(world: Any, tmp_path: Path) -> None:
    class Moody(world.World):  # type: ignore[misc,name-defined]
        """The first trial raises; the second hangs, deaf to signals."""

        def evaluate(self, predict: Callable[[Inputs], Tensor], split: str) -> dict[str, float]:
            if ray.get_runtime_context().get_actor_id() and not (self.folder / "raised").exists():
                (self.folder / "raised").touch()
                raise ValueError("no mood")
            if ray.get_runtime_context().get_actor_id() and not (self.folder / "hung").exists():
                (self.folder / "hung").touch()
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
                time.sleep(600)
            figures: dict[str, float] = super().evaluate(predict, split)
            return figures

    task = Moody(0.0)
    task.folder = tmp_path
    run = tmp_path / "run"
    records = search(world, run, task, n_trials=5, n_workers=1, trial_minutes=0.2)
    states = [record.state for record in records]
    assert states.count("failed") == 1 and len(records) == 5
    assert "ValueError: no mood" in next(str(record.error) for record in records if record.state == "failed")
    assert Counter(event["event"] for event in events(run))["restarted"] == 1, "the deaf one's process was ended"


def test_a_worker_without_the_data_stops_the_search_with_one_line(world: Any, tmp_path: Path) -> None:
    class Dataless(world.World):  # type: ignore[misc,name-defined]
        def calibration_batches(self) -> Iterator[Any]:
            if ray.get_runtime_context().get_actor_id() and not (self.folder / "data").exists():
                raise MissingDataError("images are looked for in the folder that AUTOCOMPRESS_DATA names")
            return super().calibration_batches()  # type: ignore[no-any-return]

    task = Dataless(0.0)
    task.folder = tmp_path
    run = tmp_path / "run"
    with pytest.raises(WorkerError) as raised:
        search(world, run, task, n_trials=3)
    assert str(raised.value) == (
        f"the worker on {socket.gethostname()} cannot run trials: "
        "images are looked for in the folder that AUTOCOMPRESS_DATA names"
    )
    assert len(read_records(run / "trials.jsonl")) == 1, "no trial counts as failed"
    (tmp_path / "data").touch()
    resume(run, task=task, show_progress=False)
    assert [record.state for record in read_records(run / "trials.jsonl")] == ["complete"] * 3


def test_files_are_timed_and_judged_on_the_machine_with_the_resource(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="latency_resource .* no machine has 'pi5'"):
        search(world, tmp_path / "none", world.World(0.0), latency_resource="pi5", ray_address="auto")
    assert not (tmp_path / "none").exists()
    from autocompress.latency import target_device as device

    def here(*_: object, **__: object) -> None:
        raise AssertionError("timed on the driver's machine")

    task = world.World(0.0)
    monkeypatch.setattr(device, "time_sessions", here)
    task_on_device = {"latency_resource": "device", "ray_address": "auto", "runtime": "world:OnDevice"}
    records = search(world, tmp_path / "run", task, n_trials=4, **task_on_device)
    run = RunFolder(tmp_path / "run").read()
    assert [record.state for record in records] == ["complete"] * 4
    assert run.info.objectives.reference_ms == 5.0, "the device's, not the driver's"
    assert all(point.file is not None and point.file.latency.ratio <= 1 for point in run.front.points)


def test_no_cluster_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(engine.ray, "init", _refuse)
    with (
        pytest.raises(InputError, match=f"a running cluster, but '{address}' is not .*ray start --head"),
        ray_cluster(SearchSettings(ray_address=address)),
    ):
        pass


def _refuse(**_: object) -> None:
    raise ConnectionError("nobody answers")


LISTENERS = """
import os, ray
from contextlib import suppress
from pathlib import Path
from autocompress.execution.ray_backend import ray_cluster
from autocompress.config import SearchSettings

def tree(root):
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = stat.read_text().rpartition(")")[2].split()
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found

with ray_cluster(SearchSettings(n_workers=1)):
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    inodes = set()
    for pid in tree(os.getpid()):
        for handle in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # closed in between
                inodes.add(os.readlink(f"/proc/{pid}/fd/{handle}"))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                print(fields[1].rpartition(":")[0])
    print("dashboard", bool(ray._private.worker._global_node.webui_url))
"""


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are read from /proc")
def test_a_local_ray_listens_on_the_loopback_address_only_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LISTENERS], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    *addresses, dashboard = done.stdout.split("\n")[:-1]
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert len(addresses) >= 3 and set(addresses) <= loopback
    assert dashboard == "dashboard False"
    assert list(tmp_path.iterdir()) == []


# --- the end of a search's time, and the polish


def test_what_running_trials_have_reached_counts_when_time_is_up(world: Any, tmp_path: Path) -> None:
    class Endless(world.World):  # type: ignore[misc,name-defined]
        """On workers each rung takes a while, so that trials are cut off in the middle."""

        def evaluate(self, predict: Callable[[Inputs], Tensor], split: str) -> dict[str, float]:
            if ray.get_runtime_context().get_actor_id():
                time.sleep(0.4)
            figures: dict[str, float] = super().evaluate(predict, split)
            return figures

    run, task, minutes = tmp_path / "run", Endless(0.0), 1.0
    rungs = {"rungs": list(range(0, 200, 2)), "learning_rate": 0.05}  # 40 seconds a trial
    begin = time.monotonic()
    records = search(world, run, task, n_trials=1_000, minutes=minutes, distill=rungs, polish_share=0.0)
    seconds = time.monotonic() - begin
    cut_off = [record for record in records if record.state == "stopped"]
    assert len(cut_off) == 2, "one on each worker"
    model = task.build_model()
    graph = inspect_model(model, task.example_inputs())
    for record in cut_off:
        assert 1 <= len(record.rungs) < 100
        student, _ = load_student(RunFolder(run).trial(record.name), model, graph)
        assert task.evaluate(lambda inputs, own=student: own(*inputs), "selection") == record.metrics
    assert RunFolder(run).read().front.points, "and so there is a front"
    assert seconds < 60 * minutes * 1.15 + 5, "the start of Ray's workers and a busy machine take some"


def test_front_points_are_polished_once_each_and_the_front_only_gets_better(world: Any, tmp_path: Path) -> None:
    run, task = tmp_path / "run", world.Improvable(pause=0.0)
    records = search(world, run, task, n_trials=6, polish_points=2, polish_steps=40, n_workers=1)
    polished = [record for record in records if record.origin == "polished"]
    explored = [record for record in records if record.origin != "polished"]
    assert len(explored) == 6 and 1 <= len(polished) <= 2
    assert all(record.state == "complete" for record in records)
    by_name = {record.name: record for record in records}
    for record in polished:
        assert record.parent in by_name
        (origin,) = (other for other in explored if other.candidate == record.candidate)
        assert record.latency == origin.latency and record.rungs[-1].steps == 40
    objectives = RunFolder(run).read().info.objectives
    before, after = front_of(explored, objectives), front_of(records, objectives)
    assert after.hypervolume >= before.hypervolume
    resume(run, task=task, show_progress=False)
    assert len(read_records(run / "trials.jsonl")) == len(records), "nothing is polished again"


POLISH = """
import sys
from pathlib import Path
import world
from autocompress.api import resume, run_new
from autocompress.results.run_folder import RunFolder

run, pause = Path(sys.argv[1]), float(sys.argv[2])
task = world.Improvable(pause)
if RunFolder(run).info.is_file():
    resume(run, task=task, show_progress=False)
else:
    settings = world.settings(5, n_workers=1, polish_points=2, polish_steps=40)
    run_new(task, settings, run, space=world.space_of(task.build_model()), show_progress=False)
"""


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=["kill -9", "Ctrl-C"]
)
def test_a_polish_that_was_cut_off_continues_and_nothing_is_lost_or_done_twice(
    world: Any, tmp_path: Path, how: signal.Signals
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-W", "ignore", "-c", POLISH, str(run)]
    whole = subprocess.run([*command[:-1], str(tmp_path / "whole"), "0.0"], capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    driver = subprocess.Popen([*command, "0.5"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    states = RunFolder(run).states
    while not list(states.glob("*-polish.pt")):
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.02)
    driver.send_signal(how)
    driver.communicate(timeout=120)
    before = read_records(run / "trials.jsonl")
    assert list(states.glob("*-polish.pt")), "from which it continues"
    assert sum(record.origin == "polished" for record in before) < 2
    again = subprocess.run([*command, "0.0"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    after, expected = read_records(run / "trials.jsonl"), read_records(tmp_path / "whole" / "trials.jsonl")
    assert [record.number for record in after] == [record.number for record in expected]
    for ours, theirs in zip(after, expected, strict=True):
        assert (ours.origin, ours.candidate, ours.parent) == (theirs.origin, theirs.candidate, theirs.parent)
        assert (ours.state, ours.rungs) == (theirs.state, theirs.rungs), "exactly as without the interruption"
    polished = [record.candidate.digest for record in after if record.origin == "polished"]
    assert polished and len(polished) == len(set(polished))
    rungs = [event for event in events(run) if event["event"] == "rung" and event["trial"] == after[-1].number]
    assert len(rungs) == len({event["steps"] for event in rungs}), "no rung of the polish twice"
    assert not states.exists()


@pytest.mark.parametrize("sampler", ["random", "solver"])
def test_a_minimised_metric_is_minimised_from_the_sampler_to_the_polish(
    world: Any, tmp_path: Path, sampler: str
) -> None:
    """Also: whole models are judged although uniform candidates are queued; early stopping has the right sign."""
    from tests.shared.tasks import STUB, tiny_space, tiny_task

    task = tiny_task()
    task.objectives = {"loss": "minimize"}  # type: ignore[attr-defined]
    settings = SearchSettings.from_dict(
        {
            "runtime": STUB, "sampler": sampler, "n_trials": 8, "n_workers": 2, "early_stopping": True,
            "polish_points": 2, "polish_steps": 20, "distill": {"rungs": [0, 2, 6], "learning_rate": 0.02},
        }
    )  # fmt: skip
    run = tmp_path / "run"
    run_new(task, settings, run, space=tiny_space(), show_progress=False)
    records = read_records(run / "trials.jsonl")
    assert [record.error for record in records if record.state == "failed"] == []
    assert [record.origin for record in records[:2]] == ["baseline", "whole model"]
    for record in records[1:]:
        assert record.metrics["loss"] == min(rung.metrics["loss"] for rung in record.rungs)
    objectives = RunFolder(run).read().info.objectives
    assert not objectives.is_maximized
    front = front_of(records, objectives)
    slow_to_fast = [point.metrics["loss"] for point in reversed(front.points)]
    assert slow_to_fast == sorted(slow_to_fast), "what is faster has a larger loss"


@pytest.mark.parametrize("sampler", ["random", "solver"])
def test_a_worker_that_cannot_import_the_task_ends_the_search_at_once(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """Ray was started before the folder was on `sys.path`, so that its workers do not find the module."""
    (tmp_path / "only_here.py").write_text("import world\n\n\nclass Task(world.World):\n    pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    run, task = tmp_path / "run", only_here.Task(pause=0.0)
    with pytest.raises(WorkerError, match="No module named 'only_here'"):
        search(world, run, task, n_trials=4, sampler=sampler)
    file = run / "trials.jsonl"
    origins = [record.origin for record in read_records(file)] if file.is_file() else []
    assert set(origins) <= {"baseline", "whole model"}, "no trial failed one by one"
