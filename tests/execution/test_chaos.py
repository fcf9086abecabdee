"""Workers, a node and the driver are killed again and again: nothing is lost, nothing counts twice, nothing is left."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import optuna
import pytest
import ray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray.cluster_utils import Cluster

from autocompress.results.records import TrialRecord, read_records
from autocompress.results.run_folder import RunFolder
from autocompress.sampling.samplers import sampler_named
from autocompress.sampling.study import SearchStudy

CHAOS = Path(__file__).with_name("chaos")
ROOT = Path(__file__).parents[2]
_TRAINABLE = "Trainable"  # Tune's class around ours is what Ray names the process after
SEED = int(os.environ.get("CHAOS_SEED", "0"))
SECONDS = 900.0  # no kill may hold the search up for longer


class Battlefield:
    """A Ray cluster of several raylets on this machine, in folders of its own, and a driver that joins it.

    Args:
        folder: for the run and for everybody's temporary files.
        n_nodes: raylets besides the head's, of one CPU each.
    """

    def __init__(self, folder: Path, n_nodes: int) -> None:
        self.run = RunFolder(folder / "run")
        self.tmp = folder / "tmp"
        self.tmp.mkdir()
        self.ray_tmp = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # socket paths must be short
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "temp_dir": str(self.ray_tmp),
                "include_dashboard": False,
                "node_ip_address": "127.0.0.1",
            },
        )
        for _ in range(n_nodes):
            self.add_node()
        self.driver: subprocess.Popen[str] | None = None
        self.kills: list[str] = []

    def add_node(self) -> None:
        self.cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", temp_dir=str(self.ray_tmp))

    def start_driver(self, n_trials: int) -> None:
        self.driver = subprocess.Popen(
            [sys.executable, str(CHAOS / "world.py"), str(self.run.path), self.cluster.address, str(n_trials)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill_worker(self, rng: random.Random) -> bool:
        workers = self.workers()
        if not workers:
            return False
        os.kill(rng.choice(workers), signal.SIGKILL)
        return True

    def workers(self) -> list[int]:
        """Processes that hold a trial, or did so last."""
        return [pid for pid, line in self.processes() if line.startswith("ray::") and _TRAINABLE in line]

    def kill_node(self, rng: random.Random) -> bool:
        node = rng.choice(sorted(self.cluster.worker_nodes, key=lambda node: node.unique_id))
        self.cluster.remove_node(node, allow_graceful=False)
        self.add_node()
        return True

    def kill_driver(self, rng: random.Random) -> bool:
        assert self.driver is not None
        self.driver.kill()
        self.driver.communicate()
        return True

    def processes(self) -> list[tuple[int, str]]:
        """Everything that runs for this cluster and its driver: they all have this environment variable."""
        found = []
        mark = f"TMPDIR={self.tmp}".encode()
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes().split(b"\0") and int(path.name) != os.getpid():
                    line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    found.append((int(path.name), line))
            except OSError:
                continue
        return [(pid, line) for pid, line in found if line]

    def n_records(self) -> int:
        return len(self.run.records.read_text().splitlines()) if self.run.records.is_file() else 0

    def end(self) -> None:
        if self.driver is not None and self.driver.poll() is None:
            self.driver.kill()
        self.cluster.shutdown()
        shutil.rmtree(self.ray_tmp, ignore_errors=True)


@pytest.fixture
def battlefield(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Battlefield]:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{CHAOS}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv(
        "RAY_health_check_period_ms", "1000"
    )  # a lost node is noticed in seconds, a slow one is not lost
    # which cluster was started last is written where everybody's `ray.init()` looks: ours is nobody's business
    monkeypatch.setattr(ray._private.utils, "write_ray_address", lambda *_, **__: None)
    field = Battlefield(tmp_path, n_nodes=2)
    yield field
    field.end()


def fight(field: Battlefield, n_trials: int, kills: list[str], seed: int) -> None:
    """Runs the search to its end and kills one thing after the other, at random moments between two results."""
    rng = random.Random(seed)
    rng.shuffle(kills)
    # the first kill hits a search that has just begun, the last comes when a few trials are left
    moments = [1 + round((n_trials - 5) * i / max(1, len(kills) - 1)) for i in range(len(kills))]
    field.start_driver(n_trials)
    begin = last = time.monotonic()
    for kill, moment in zip(kills, moments, strict=True):
        while field.n_records() < moment:
            assert time.monotonic() - last < SECONDS, _story(field)
            revive(field, n_trials)
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        while not getattr(field, f"kill_{kill}")(rng):
            assert time.monotonic() - last < SECONDS, _story(field)
            revive(field, n_trials)
            time.sleep(0.02)
        field.kills.append(f"{time.monotonic() - begin:6.1f} s, {field.n_records():3d} records: {kill} killed")
        last = time.monotonic()
        revive(field, n_trials)
    assert field.driver is not None
    while True:
        output, _ = field.driver.communicate(timeout=SECONDS)
        if field.driver.returncode == 0:
            return
        assert field.driver.returncode < 0, output
        field.start_driver(n_trials)


def revive(field: Battlefield, n_trials: int) -> None:
    """Starts the driver again when it was killed, or died with the node that it was connected to."""
    assert field.driver is not None
    if field.driver.poll() is not None:
        assert field.driver.returncode != 0, "it must not end before the last kill"
        field.start_driver(n_trials)


def _story(field: Battlefield) -> str:
    return "\n".join(field.kills) + f"\n{field.n_records()} records, then nothing"


def undisturbed(folder: Path, n_trials: int) -> list[TrialRecord]:
    """The same search without Ray: one trial after the other, in this process."""
    import world

    from autocompress.execution.preparation import prepare
    from autocompress.execution.trial import Trial, TrialPlan, WorkerContext
    from autocompress.sampling.initial_candidates import single_drop_candidates, uniform_candidates

    task = world.World(pause=0.0)
    model = task.build_model()
    settings = world.settings(n_trials)
    prepared = prepare(task, world.space_of(model), settings, None)
    sampler = sampler_named(settings.sampler, settings.seed)
    info = prepared.info
    study = SearchStudy(folder, prepared.space, sampler, info.objectives)
    study.add(prepared.baseline)
    study.enqueue(uniform_candidates(prepared.space, n_trials), "uniform")
    study.enqueue(single_drop_candidates(prepared.space, n_trials), "single drop")
    worker_context = WorkerContext(prepared.context)
    while study.n_finished < n_trials:
        asked = study.ask()
        assert asked is not None
        trial = Trial.begin(worker_context, TrialPlan(asked.candidate))
        while not trial.done:
            trial.step()
        outcome = asdict_shallow(trial.outcome())
        study.tell(TrialRecord(asked.number, "complete", asked.origin, asked.candidate, **outcome))
    worker_context.close()
    return study.records()


def asdict_shallow(outcome: object) -> dict[str, object]:
    return {name: getattr(outcome, name) for name in asdict(outcome)}  # type: ignore[call-overload]


def check(field: Battlefield, n_trials: int, reference: list[TrialRecord]) -> None:
    records = read_records(field.run.records)
    assert [record.error for record in records if record.state != "complete"] == []
    assert len(records) == n_trials
    assert max(Counter(record.candidate.digest for record in records).values()) == 1, "none counted twice"
    # random proposals depend on nothing but their position, so that the same candidates were judged, in any order
    # but for the stand-ins that are drawn when the sampler repeats itself, which depend on what is known by then
    judged = [
        {r.candidate.digest: (r.metrics, r.rungs) for r in run if r.origin != "random"} for run in (records, reference)
    ]
    assert judged[0] == judged[1]
    run = field.run.read()
    assert {path.name for path in field.run.front.iterdir()} >= {point.name for point in run.front.points}
    for record in records:
        assert {path.name for path in field.run.trial(record.name).iterdir()} == {"weights.safetensors", "recipe.json"}
    storage = JournalStorage(JournalFileBackend(str(field.run.study)))
    (name,) = optuna.get_all_study_names(storage)
    told = [trial.user_attrs.get("record") for trial in optuna.load_study(study_name=name, storage=storage).trials]
    assert sum(record is not None for record in told) == n_trials
    assert not field.run.states.exists()
    assert list(field.run.path.rglob("*.tmp")) == []


def check_nothing_is_left(field: Battlefield) -> None:
    assert field.workers() == []
    field.end()
    deadline = time.monotonic() + 30
    while field.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert field.processes() == []
    assert [path.name for path in field.tmp.glob("autocompress-*")] == []
    assert not field.ray_tmp.exists()


@pytest.mark.parametrize(
    ("n_trials", "kills"),
    [
        pytest.param(12, {"worker": 3, "node": 1, "driver": 1}, id="short"),
        pytest.param(40, {"worker": 14, "node": 2, "driver": 5}, id="long", marks=pytest.mark.slow),
    ],
)
def test_chaos(
    battlefield: Battlefield,
    tmp_path: Path,
    n_trials: int,
    kills: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(CHAOS)
    import world

    with world.clocks_go_on_afterwards():
        reference = undisturbed(tmp_path / "undisturbed.journal", n_trials)
    fight(battlefield, n_trials, [kill for kill, n in kills.items() for _ in range(n)], seed=SEED)
    print(_story_of_all(battlefield))
    check(battlefield, n_trials, reference)
    check_nothing_is_left(battlefield)


def _story_of_all(field: Battlefield) -> str:
    events = [json.loads(line) for line in field.run.events.read_text().splitlines()]
    counts = Counter(event["event"] for event in events)
    return "\n".join([*field.kills, f"{len(field.kills)} kills; events: {dict(counts)}"])
