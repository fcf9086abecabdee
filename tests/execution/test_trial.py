"""A trial on a worker: its rungs, its best checkpoint, when it is not trained, and resuming from a saved state."""

from __future__ import annotations

import errno
import json
import logging
import math
import platform
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from torch import Tensor, nn

from autocompress.compression import CRITERIA, Recipe, resolve
from autocompress.compression.low_rank import source
from autocompress.config import DistillSettings, SearchSettings
from autocompress.distillation.fine_tune import FastMode
from autocompress.errors import AutocompressError, InputError, MeasurementError, MissingDataError
from autocompress.execution import trial as bench_module
from autocompress.execution import worker as worker_module
from autocompress.execution.deadline import Deadline
from autocompress.execution.shared_context import SharedContext
from autocompress.execution.trial import (
    Measured,
    TrainedFiles,
    Trial,
    TrialPlan,
    WorkerContext,
    n_macs,
    training_of,
)
from autocompress.execution.trial_queue import Assignment
from autocompress.execution.worker import Worker
from autocompress.graph import inspect_model
from autocompress.latency import PairedTiming
from autocompress.publishing.artifact import load_student
from autocompress.results.records import TrialRecord
from autocompress.runtimes import runtime_named
from autocompress.search_context import SearchContext, moments_of
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Knob, SearchSpace
from autocompress.task import Inputs, Predict, SupervisedTask, Task, as_inputs, call_model
from tests.shared.objectives import of_accuracy
from tests.shared.tasks import STUB, TinyNet, batches, images, tiny_task, trained_model

pytestmark = pytest.mark.usefixtures("brief_clock")

EVERYTHING = Candidate(
    prune_ratio={"conv1": 0.5}, rank_ratio={"conv2": 0.5}, weight_bits={"conv1": 8, "conv2": 8, "fc": 8}
)
REFERENCE_MS = 3.0


def context_of(
    folder: Path,
    *,
    runtime: str = STUB,
    budget: float | None = None,
    learning_rate: float = 0.05,
    task: Task | None = None,
    rungs: tuple[int, ...] = (0, 4, 20),
    importance: str = "l2",
    reconstruct: bool = False,  # so that the fine-tune has something to gain
) -> SearchContext:
    model = trained_model()
    task = task if task is not None else tiny_task()
    inputs = as_inputs(task.example_inputs())
    return SearchContext(
        task=task,
        model=model,
        graph=inspect_model(model, inputs),
        settings=SearchSettings(
            runtime=runtime,
            importance=importance,
            reconstruct=reconstruct,
            fine_tune_margin=0.1,
            distill=DistillSettings(rungs=rungs, learning_rate=learning_rate),
        ),
        reference=runtime_named(runtime).export(model, inputs, folder).read_bytes(),
        objectives=of_accuracy(budget, REFERENCE_MS),
    )


MakeBench = Callable[..., WorkerContext]


@pytest.fixture
def bench_of() -> Iterator[MakeBench]:
    """Makes benches, and removes their folders afterwards."""
    benches: list[WorkerContext] = []

    def make(context: SearchContext, device: torch.device | None = None) -> WorkerContext:
        worker_context = WorkerContext(context, device)
        worker_context.teacher.mode = FastMode(
            False
        )  # which of the two is faster on this machine must not decide a test
        benches.append(worker_context)
        return worker_context

    yield make
    for worker_context in benches:
        worker_context.close()


_SENT: dict[int, dict[str, bytes]] = {}
"""Files of the trial that finished last, by job."""


def finished(worker_context: WorkerContext, candidate: Candidate) -> Trial:
    trial = Trial.begin(worker_context, TrialPlan(candidate))
    while not trial.done:
        trial.step()
    _SENT[id(worker_context.context)] = trial.files()
    return trial


def student_in(files: Mapping[str, bytes], context: SearchContext) -> nn.Module:
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        student, _ = load_student(Path(name), context.model, context.graph)
    return student


def saved_student(context: SearchContext) -> nn.Module:
    return student_in(_SENT[id(context)], context)


def judged(model: nn.Module) -> Mapping[str, float]:
    def predict(inputs: Inputs) -> Tensor:
        with torch.no_grad():
            out: Tensor = call_model(model, inputs)
        return out

    return tiny_task().evaluate(predict, "selection")


def test_a_trial_goes_through_its_rungs_and_leaves_the_best_student(tmp_path: Path, bench_of: MakeBench) -> None:
    context = context_of(tmp_path, learning_rate=0.02)
    trial = Trial.begin(bench_of(context), TrialPlan(EVERYTHING))
    done = []
    for _ in range(3):
        trial.step()
        done.append(trial.done)
    assert done == [False, False, True]
    outcome = trial.outcome()
    assert [rung.steps for rung in outcome.rungs] == [0, 4, 20]
    assert outcome.fine_tuned
    best = max(rung.metrics["accuracy"] for rung in outcome.rungs)
    assert outcome.metrics["accuracy"] == best > outcome.rungs[0].metrics["accuracy"]
    assert judged(student_in(trial.files(), context)) == outcome.metrics
    assert judged(context.model) == judged(trained_model()), "the job's model is as it was"


def test_files_of_a_rung_are_those_of_the_best_so_far_and_taking_them_changes_nothing(
    tmp_path: Path, bench_of: MakeBench
) -> None:
    context = context_of(tmp_path, learning_rate=3.0)  # so that training hurts
    worker_context = bench_of(context)
    undisturbed, trial = finished(worker_context, EVERYTHING), Trial.begin(worker_context, TrialPlan(EVERYTHING))
    while not trial.done:
        trial.step()
        assert judged(student_in(trial.files(), context)) == trial.outcome().metrics
    assert trial.outcome().rungs == undisturbed.outcome().rungs
    assert trial.outcome().metrics["accuracy"] > trial.outcome().rungs[-1].metrics["accuracy"]


def test_training_that_hurts_is_undone(tmp_path: Path, bench_of: MakeBench) -> None:
    context = context_of(tmp_path, learning_rate=3.0)
    outcome = finished(bench_of(context), EVERYTHING).outcome()
    assert outcome.rungs[-1].metrics["accuracy"] < outcome.rungs[0].metrics["accuracy"] - 0.1, "it hurt"
    assert outcome.metrics == max(outcome.rungs, key=lambda rung: rung.metrics["accuracy"]).metrics
    assert judged(saved_student(context)) == outcome.metrics


class Tied(SupervisedTask):
    """A metric that is the same for every model, and a loss that is not."""

    def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        return {"accuracy": 0.5, "loss": super().evaluate(predict, split)["loss"]}


def tied() -> Tied:
    return Tied(trained_model(), batches(128, 1), batches(192, 2, 64), batches(64, 3), calibration=[images(64, 4)[0]])


def test_figures_and_weights_are_of_the_same_rung_when_rungs_are_equal(tmp_path: Path, bench_of: MakeBench) -> None:
    context = context_of(tmp_path, task=tied())
    outcome = finished(bench_of(context), EVERYTHING).outcome()
    assert len({rung.metrics["loss"] for rung in outcome.rungs}) == 3
    assert judged(saved_student(context))["loss"] == outcome.metrics["loss"]


def test_the_uncompressed_model_is_judged_and_not_trained(tmp_path: Path, bench_of: MakeBench) -> None:
    context = context_of(tmp_path)
    outcome = finished(bench_of(context), Candidate()).outcome()
    assert [rung.steps for rung in outcome.rungs] == [0]
    assert not outcome.fine_tuned
    assert outcome.metrics == judged(trained_model())
    x = images(8, 5)[0]
    assert torch.equal(saved_student(context)(x), trained_model()(x))


def timed_at(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    timing = PairedTiming(ratio, 0.02, 99.0, 77.0, 9, 100)
    monkeypatch.setattr(bench_module, "time_sessions", lambda *_, **__: timing)


@pytest.mark.parametrize(
    ("ratio", "budget", "trains"),
    [(0.54, 0.5, True), (0.56, 0.5, False), (0.3, 0.5, True), (5.0, None, True)],
)
def test_no_fine_tune_for_what_is_over_the_budget(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ratio: float,
    budget: float | None,
    trains: bool,
    bench_of: MakeBench,
) -> None:
    timed_at(ratio, monkeypatch)
    context = context_of(tmp_path, budget=budget, rungs=(0, 2))
    outcome = finished(bench_of(context), EVERYTHING).outcome()
    assert outcome.fine_tuned == trains
    assert [rung.steps for rung in outcome.rungs] == ([0, 2] if trains else [0])
    accuracy = judged(saved_student(context))["accuracy"]
    assert accuracy == outcome.metrics["accuracy"], "the record's weights are there in any case"
    assert outcome.latency.ratio == ratio
    assert outcome.latency.ms == pytest.approx(ratio * REFERENCE_MS), "not what the clock said: milliseconds drift"
    assert (outcome.latency.spread, outcome.latency.n_rounds) == (0.02, 9)


def test_a_saved_state_goes_on_exactly(tmp_path: Path, bench_of: MakeBench) -> None:
    context = context_of(tmp_path)
    worker_context = bench_of(context)
    whole = finished(worker_context, EVERYTHING)
    for n_before in (1, 2):
        first = Trial.begin(worker_context, TrialPlan(EVERYTHING))
        for _ in range(n_before):
            first.step()
        torch.save(first.state_dict(), tmp_path / "trial.pt")
        state = torch.load(tmp_path / "trial.pt", weights_only=True)
        second = Trial.restore(worker_context, TrialPlan(EVERYTHING), state)
        for _ in range(3 - n_before):
            assert not second.done
            second.step()
        assert second.done
        expected, found = asdict(whole.outcome()), asdict(second.outcome())
        assert found["latency"] == asdict(first.outcome())["latency"], "it is not measured again"
        for different in ("latency", "seconds", "peak_memory_mib"):
            del expected[different], found[different]
        assert found == expected
        ours, theirs = (student_in(trial.files(), context).state_dict() for trial in (second, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_trial_starts_from_the_best_weights_and_its_state_keeps_them(tmp_path: Path, bench_of: MakeBench) -> None:
    context = context_of(tmp_path)
    worker_context = bench_of(context)
    parent = finished(worker_context, EVERYTHING)
    trained = [TrainedFiles("trial_0001", parent.files())]
    child = TrialPlan(replace(EVERYTHING, weight_bits={"conv1": 8, "conv2": 8}))
    whole, first = (Trial.begin(worker_context, child, trained) for _ in range(2))
    while not whole.done:
        whole.step()
    outcome = whole.outcome()
    assert outcome.parent == "trial_0001"
    alone = Trial.begin(worker_context, child)
    alone.step()
    assert alone.outcome().parent == "uncompressed"
    gained = outcome.rungs[0].metrics["loss"], alone.outcome().rungs[0].metrics["loss"]
    assert gained[0] < gained[1], "before any training of its own"
    first.step()
    torch.save(first.state_dict(), tmp_path / "trial.pt")
    second = Trial.restore(bench_of(context), child, torch.load(tmp_path / "trial.pt", weights_only=True))
    while not second.done:
        second.step()
    assert second.outcome().rungs == outcome.rungs and second.outcome().parent == "trial_0001"
    assert second.files() == whole.files(), "as if the worker had not died"


def test_a_polish_continues_its_origins_weights_and_measures_nothing_again(
    tmp_path: Path, bench_of: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(tmp_path, budget=0.5)
    worker_context = bench_of(context)
    timed_at(0.4, monkeypatch)
    origin = finished(worker_context, EVERYTHING)

    def again(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(bench_module, "time_sessions", again)
    known = Measured(origin.outcome().latency, origin.outcome().size_mib)
    plan = TrialPlan(EVERYTHING, 8, known)
    files = [TrainedFiles("trial_0001", origin.files())]
    whole = Trial.begin(worker_context, plan, files)
    while not whole.done:
        whole.step()
    outcome = whole.outcome()
    assert [rung.steps for rung in outcome.rungs] == [0, 8]
    assert [*training_of(DistillSettings(), replace(plan, polish_steps=1000)).rungs] == [0, 500, 1000]
    assert outcome.rungs[0].metrics["accuracy"] == pytest.approx(origin.outcome().metrics["accuracy"], abs=0.02)
    assert (outcome.latency, outcome.size_mib, outcome.parent) == (known.latency, known.size_mib, "trial_0001")
    cut = Trial.begin(worker_context, plan, files)
    cut.step()
    torch.save(cut.state_dict(), tmp_path / "polish.pt")
    rest = Trial.restore(bench_of(context), plan, torch.load(tmp_path / "polish.pt", weights_only=True))
    while not rest.done:
        rest.step()
    assert rest.outcome().rungs == outcome.rungs and rest.files() == whole.files()


def test_a_polish_moves_its_end_to_the_deadline_and_is_restored_with_it(
    tmp_path: Path, bench_of: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(tmp_path, budget=0.5)
    worker_context = bench_of(context)
    timed_at(0.4, monkeypatch)
    origin = finished(worker_context, EVERYTHING)
    monkeypatch.setattr(bench_module, "_LONG_POLISH", 100)
    monkeypatch.setattr(bench_module, "_STEPS_BETWEEN_LOOKS", 10)

    def with_ends(ends: dict[int, int]) -> None:
        def n_steps(self: Deadline, step: int, planned: int, step_seconds: float, to_come: float) -> int:
            assert step_seconds > 0 and to_come > 0
            return ends.get(step, planned)

        monkeypatch.setattr(Deadline, "n_steps", n_steps)

    def rungs_of(trial: Trial) -> list[int]:
        while not trial.done:
            trial.step()
        return [rung.steps for rung in trial.outcome().rungs]

    known = Measured(origin.outcome().latency, origin.outcome().size_mib)
    plan = TrialPlan(EVERYTHING, 100, known, polish_seconds=1000.0)
    files = [TrainedFiles("trial_0001", origin.files())]
    with_ends({10: 30})
    assert rungs_of(Trial.begin(worker_context, plan, files)) == [0, 30], "no time for a rung between"
    with_ends({20: 20})
    assert rungs_of(Trial.begin(worker_context, plan, files)) == [0, 20], "the time is over"
    with_ends({10: 120, 60: 70})
    whole = Trial.begin(worker_context, plan, files)
    assert rungs_of(whole) == [0, 50, 70]
    cut = Trial.begin(worker_context, plan, files)
    cut.step(), cut.step()
    torch.save(cut.state_dict(), tmp_path / "polish.pt")
    rest = Trial.restore(bench_of(context), plan, torch.load(tmp_path / "polish.pt", weights_only=True))
    assert rungs_of(rest) == [0, 50, 70] and rest.files() == whole.files()


def test_figures_of_an_outcome(tmp_path: Path, bench_of: MakeBench) -> None:
    context = context_of(tmp_path, runtime="onnxruntime", rungs=(0, 2))
    worker_context = bench_of(context)
    trial = finished(
        worker_context, Candidate(prune_ratio={"conv1": 0.5}, weight_bits={"conv1": 8, "conv2": 8, "fc": 8})
    )
    outcome = trial.outcome()
    kept, width = 8, 16
    convs, norms, linear = 9 * kept + 9 * kept * width, 2 * kept + 2 * width, 64 * 4
    assert outcome.n_params == convs + norms + linear + 4
    assert outcome.n_macs == 9 * kept * 64 + 9 * kept * width * 16 + linear
    file = runtime_named("onnxruntime").export(saved_student(context), worker_context.example_inputs, tmp_path)
    assert outcome.size_mib == pytest.approx(file.stat().st_size / 2**20, rel=0.02)
    assert outcome.size_mib < len(context.reference) / 2**20
    assert 0 < outcome.latency.ratio < 5
    assert outcome.latency.n_rounds == 9
    phases = ("compress", "export", "measure", "fine-tune", "evaluate", "save")
    assert set(outcome.seconds) == {*phases, "wait"}
    assert all(outcome.seconds[phase] > 0 for phase in phases)
    assert 0 <= outcome.seconds["wait"] < 30


def test_multiplications_are_counted_for_one_sample() -> None:
    by_hand = 9 * 1 * 16 * 64 + 9 * 16 * 16 * 16 + 64 * 4
    assert n_macs(TinyNet(), (torch.zeros(1, 1, 8, 8),)) == by_hand
    assert n_macs(TinyNet(), {"x": torch.zeros(5, 1, 8, 8)}) == by_hand


class Counting(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.n_calls = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        out: Tensor = self.model(x)
        return out


def test_the_next_trial_on_a_bench_asks_the_teacher_nothing(tmp_path: Path, bench_of: MakeBench) -> None:
    worker_context = bench_of(context_of(tmp_path, rungs=(0, 3, 6)))
    worker_context.teacher.model = teacher = Counting(worker_context.teacher.model)
    finished(worker_context, EVERYTHING)
    assert teacher.n_calls == 6
    finished(worker_context, Candidate(weight_bits={"fc": 8}))
    assert teacher.n_calls == 6


class Figures(SupervisedTask):
    """Judges every model alike."""

    figures: Mapping[str, float]

    def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        return dict(self.figures)


@pytest.mark.parametrize(
    ("figures", "kind", "message"),
    [
        ({"accuracy": math.nan}, InputError, "finite"),
        ({"other": 0.5}, MeasurementError, "must give 'accuracy', but gave .'other'."),
    ],
)
def test_a_metric_that_is_no_figure(
    tmp_path: Path, figures: dict[str, float], kind: type[AutocompressError], message: str, bench_of: MakeBench
) -> None:
    task = Figures(trained_model(), batches(64, 1), [], [])
    task.figures = figures
    context = context_of(tmp_path, task=task)
    with pytest.raises(kind, match=message):
        finished(bench_of(context), EVERYTHING)


MakeWorker = Callable[[SearchContext, Candidate], Worker]


class AtHand(SharedContext):
    """A context that needs no Ray."""

    def get(self) -> SearchContext:
        context = self.reference[0]
        assert isinstance(context, SearchContext)
        return context


class Unreadable(SharedContext):
    """On a machine that lacks a module of the task; Ray reports it so."""

    def get(self) -> SearchContext:
        raise ray.exceptions.RaySystemError(
            "System error: No module named 'my_models'\nModuleNotFoundError: No module named 'my_models'"
        )


def test_a_machine_without_a_module_of_the_task_says_which(tmp_path: Path) -> None:
    worker = Worker.__new__(Worker)
    with warnings.catch_warnings():
        worker.setup(config_of(EVERYTHING), Unreadable(context_of(tmp_path).settings, []))
    line = worker.step()["unusable"]
    assert platform.node() in line and "No module named 'my_models'" in line and "\n" not in line


def config_of(candidate: Candidate) -> dict[str, object]:
    return Assignment(TrialRecord(3, "failed", "sampler", candidate)).config()


@pytest.fixture
def worker_of(bench_of: MakeBench, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeWorker]:
    """Makes workers as Ray Tune sets them up, without Ray."""
    monkeypatch.setattr(worker_module, "WorkerContext", bench_of)
    n_threads, level = torch.get_num_threads(), logging.getLogger("torch.onnx").level

    def make(context: SearchContext, candidate: Candidate) -> Worker:
        worker = Worker.__new__(Worker)
        with warnings.catch_warnings():
            worker.setup(config_of(candidate), AtHand(context.settings, [context]))
        return worker

    yield make
    torch.set_num_threads(n_threads)
    logging.getLogger("torch.onnx").setLevel(level)


@pytest.mark.parametrize(
    "broken",
    [
        {"prune_ratio": {"nothing": 0.5}},  # raises before there is a recipe
        {"weight_bits": {"no_layer": 8}},
    ],
)
def test_a_trial_that_raised_reports_its_traceback_and_can_be_saved(
    tmp_path: Path, broken: dict[str, object], worker_of: MakeWorker
) -> None:
    worker = worker_of(context_of(tmp_path), Candidate(**broken))  # type: ignore[arg-type]
    result = worker.step()
    assert result["done"] is True
    assert "CompressionError" in result["failed"]
    assert worker.reset_config(config_of(Candidate()))
    assert "outcome" in worker.step()


def test_a_trial_that_cannot_be_exported_reports_its_traceback_and_can_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker_of: MakeWorker
) -> None:
    context = context_of(tmp_path)
    worker = worker_of(context, EVERYTHING)

    def fails(*_: object, **__: object) -> None:
        raise MeasurementError("no clock")

    monkeypatch.setattr(bench_module, "time_sessions", fails)
    result = worker.step()
    assert "MeasurementError: no clock" in result["failed"]


def test_a_worker_goes_on_from_anothers_state_and_sends_what_the_other_would_have(
    tmp_path: Path, worker_of: MakeWorker
) -> None:
    context = context_of(tmp_path, rungs=(0, 2))
    first, second = worker_of(context, EVERYTHING), worker_of(context, EVERYTHING)
    rung = first.step()
    assert (rung["steps"], rung["done"]) == (0, False)
    second.prepare(rung["state"], ())
    result = second.step()
    assert result["done"] is True
    outcome, whole = json.loads(result["outcome"]), first.step()
    assert [rung["steps"] for rung in outcome["rungs"]] == [0, 2]
    assert outcome["metrics"] == json.loads(whole["outcome"])["metrics"]
    assert set(result["files"]) == {"weights.safetensors", "recipe.json"}
    assert result["files"]["weights.safetensors"] == whole["files"]["weights.safetensors"]


def test_the_mode_of_the_fine_tune_travels_with_the_state(tmp_path: Path, worker_of: MakeWorker) -> None:
    context = context_of(tmp_path, rungs=(0, 2, 4))
    first, second = worker_of(context, EVERYTHING), worker_of(context, EVERYTHING)
    for _ in range(2):
        state = first.step()["state"]
    other = second._ready_context()
    other.teacher.mode = FastMode(True)  # as if the other machine were faster with it
    second.prepare(state, ())
    ours, theirs = first.step()["files"], second.step()["files"]
    assert ours["weights.safetensors"] == theirs["weights.safetensors"]


def test_a_machine_without_the_data_says_so_in_one_line(
    tmp_path: Path, worker_of: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoData(SupervisedTask):
        def calibration_batches(self) -> Iterator[Inputs]:
            raise MissingDataError("the images must lie in the folder AUTOCOMPRESS_DATA names\nand more")

    monkeypatch.setattr(worker_module, "WorkerContext", WorkerContext)
    context = replace(context_of(tmp_path), task=NoData(trained_model(), batches(64, 1), [], []))
    result = worker_of(context, EVERYTHING).step()
    assert result == {
        "unusable": f"the worker on {platform.node()} cannot run trials: "
        "the images must lie in the folder AUTOCOMPRESS_DATA names",
        "done": True,
    }


def test_a_full_disk_is_no_fault_of_the_candidate(
    tmp_path: Path, worker_of: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bench_module, "save_student", full)
    worker = worker_of(context_of(tmp_path, rungs=(0,)), EVERYTHING)
    assert "No space left on device" in worker.step()["unusable"]


class Slow(SupervisedTask):
    """Hangs when it judges, and takes every exception for a small matter."""

    def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        while True:
            with suppress(Exception):
                time.sleep(60)


def test_a_trial_that_hangs_fails_at_its_limit_and_says_where(tmp_path: Path, worker_of: MakeWorker) -> None:
    context = context_of(tmp_path, rungs=(0,))
    context = replace(
        context,
        task=Slow(trained_model(), batches(64, 1), [], []),
        settings=replace(context.settings, trial_minutes=0.02),
    )
    worker = worker_of(context, EVERYTHING)
    failed = worker.step()["failed"]
    assert "in evaluate" in failed and "trial_minutes = 0.02" in failed
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("importance", sorted(CRITERIA))
def test_a_bench_judges_by_the_chosen_importance_and_keeps_its_evidence(
    importance: str, tmp_path: Path, bench_of: MakeBench
) -> None:
    worker_context = bench_of(context_of(tmp_path, rungs=(0,), importance=importance))
    for ratio in (0.25, 0.5):
        candidate = Candidate(prune_ratio={"conv1": ratio, "conv2": ratio})
        trial = Trial.begin(worker_context, TrialPlan(candidate))
        trial.step()
        assert trial.done and 0 <= trial.outcome().metrics["accuracy"] <= 1
        recipe = Recipe.from_dict(trial.state_dict()["recipe"])
        assert recipe == resolve(
            worker_context.context.model,
            worker_context.context.graph,
            candidate,
            importance,
            worker_context.calibration_stats,
        )
        assert [len(gone) for gone in recipe.removed.values()] == [16 * ratio] * 2
    collected = {"activations", "saliency"} & set(vars(worker_context.calibration_stats))
    needed = {"activation": {"activations"}, "entropy": {"activations"}, "taylor": {"saliency"}}
    assert collected == needed.get(importance, set())


def test_a_bench_refits_where_the_settings_say_so(tmp_path: Path, bench_of: MakeBench) -> None:
    losses = []
    for reconstruct in (False, True):
        worker_context = bench_of(context_of(tmp_path, rungs=(0,), reconstruct=reconstruct))
        finished(worker_context, Candidate(prune_ratio={"conv1": 0.5, "conv2": 0.5}))
        student = saved_student(worker_context.context)
        inputs = worker_context.calibration[0]
        losses.append(
            (call_model(student, inputs) - call_model(worker_context.context.model, inputs)).square().mean().item()
        )
    assert losses[1] < 0.7 * losses[0]


def test_zeroed_weights_are_trained_around_and_their_saving_is_reported(tmp_path: Path, bench_of: MakeBench) -> None:
    context = context_of(tmp_path, runtime="onnxruntime", rungs=(0, 4))
    candidate = Candidate(prune_ratio={"conv1": 0.5}, sparsity={"conv2": "2:4", "fc": 0.75})
    outcome = finished(bench_of(context), candidate).outcome()
    student = saved_student(context)
    conv, linear = student.get_submodule("conv2").weight, student.get_submodule("fc").weight
    assert ((conv != 0).movedim(1, -1).unflatten(-1, (-1, 4)).sum(-1) == 2).all()  # type: ignore[union-attr,operator]
    assert (linear == 0).sum() == 0.75 * 4 * 64  # type: ignore[union-attr]
    saved = 4 * (8 * 16 * 9 // 2 + 192) - (8 * 16 * 9 + 256) // 8
    assert outcome.sparse_size_mib == pytest.approx(outcome.size_mib - saved / 2**20)
    dense = finished(bench_of(context), Candidate(prune_ratio={"conv1": 0.5})).outcome()
    assert dense.sparse_size_mib is None


def test_a_candidates_own_fine_tune_is_used(tmp_path: Path, bench_of: MakeBench) -> None:
    worker_context = bench_of(context_of(tmp_path, rungs=(0, 4, 20)))
    shorter = Candidate({"conv1": 0.5}, fine_tune={"steps": 6, "learning_rate": 0.001})
    assert [rung.steps for rung in finished(worker_context, shorter).outcome().rungs] == [0, 4, 6]
    assert [rung.steps for rung in finished(worker_context, Candidate({"conv1": 0.5})).outcome().rungs] == [0, 4, 20]


def test_what_the_driver_sends_of_the_inputs_is_not_collected_on_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(tmp_path)
    space = SearchSpace((Knob("rank_ratio", "conv2", (None, 0.5)),))
    moments = moments_of(context, space)
    assert moments is not None and all(isinstance(second, np.ndarray) for second in moments.values())
    assert moments_of(context, SearchSpace((Knob("weight_bits", "fc", (32, 8)),))) is None
    assert moments_of(replace(context, settings=replace(context.settings, activation_aware=False)), space) is None
    alone = Trial.begin(WorkerContext(context), TrialPlan(EVERYTHING))
    alone.step()

    def collect(*args: object) -> None:
        raise AssertionError("collected again")

    monkeypatch.setattr(source, "cached_moments", collect)
    for second in moments.values():
        second.setflags(write=False)  # as in the object store
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as a worker does; PyTorch warns of what cannot be written
        helped = Trial.begin(WorkerContext(replace(context, moments=moments)), TrialPlan(EVERYTHING))
    helped.step()
    for mine, theirs in zip(alone.files().values(), helped.files().values(), strict=True):
        assert mine == theirs
    with pytest.raises(AssertionError, match="collected again"):
        Trial.begin(WorkerContext(context), TrialPlan(EVERYTHING))
