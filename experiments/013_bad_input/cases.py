"""Bad input through every door: each case is one call, and says what a good answer is.

A case makes its files in a folder of its own and calls the command line or the API. `run.py` tries all of them and
writes the verdicts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASKS = """
import itertools, random, sys
import numpy as np, torch
from torch import nn
from autocompress import SupervisedTask
torch.manual_seed(0)
x, y = torch.randn(64, 3), torch.randint(2, (64,))
batch = (x, y)
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2)).eval()
def made(**more):
    return SupervisedTask(model(), [batch], [batch], [batch], **more)
def with_evaluate(evaluate):
    task = made()
    task.evaluate = evaluate
    return task
good = made()
evaluate_raises = with_evaluate(lambda predict, split: {}["labels"])
evaluate_exits = with_evaluate(lambda predict, split: sys.exit(0))
evaluate_no_split = with_evaluate(lambda predict: {"accuracy": 0.5})
evaluate_extra = with_evaluate(lambda predict, split, data: {"accuracy": 0.5})
evaluate_none = with_evaluate(lambda predict, split: None)
evaluate_list = with_evaluate(lambda predict, split: [0.5])
evaluate_int_keys = with_evaluate(lambda predict, split: {0: 0.5})
evaluate_text = with_evaluate(lambda predict, split: {"accuracy": "0.5"})
evaluate_nan_on_test = with_evaluate(lambda predict, split: {"accuracy": float("nan") if split == "test" else 0.5})
evaluate_percent = with_evaluate(lambda predict, split: {"accuracy": 91.5})
evaluate_loss = with_evaluate(lambda predict, split: {"val_loss": 0.5})
evaluate_rmse = with_evaluate(lambda predict, split: {"rmse": 0.5})
evaluate_shape = with_evaluate(lambda predict, split: {"accuracy": float(predict((torch.zeros(1, 7),)).sum())})
empty_test = SupervisedTask(model(), [batch], [batch], [])
empty_train = SupervisedTask(model(), [], [batch], [batch])
class Endless:
    def __iter__(self):
        return itertools.cycle([batch])
class EndlessInputs:
    def __iter__(self):
        return itertools.cycle([x])
endless_calibration = made(calibration=EndlessInputs())
endless_selection = SupervisedTask(model(), [batch], Endless(), [batch])
no_samples = made(example_inputs=torch.zeros(0, 3))
scalar_inputs = made(example_inputs=torch.tensor(1.0))
def compiled():
    task = made(); task.build_model = lambda: torch.compile(model()); return task
def scripted():
    task = made(); task.build_model = lambda: torch.jit.script(model()); return task
def traced():
    task = made(); task.build_model = lambda: torch.jit.trace(model(), (x,)); return task
def training():
    task = made(); task.build_model = lambda: model().train(); return task
def no_module():
    task = made(); task.build_model = lambda: {"weights": 1}; return task
def raising():
    raise RuntimeError("no data")
def exiting():
    sys.exit(3)
number = 3
module = nn.Linear(3, 2)
objectives_wrong = made(); objectives_wrong.objectives = {"accuracy": "up"}
objectives_unknown = made(); objectives_unknown.objectives = {"acc": "maximize"}
objectives_bad_type = made(); objectives_bad_type.objectives = 3
"""


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        name: of the case.
        call: of a folder that holds `tasks.py` and a finished run `run/`; returns the exit code of a command, or
            whatever the API returns.
        good: exit codes that are right; None where the API must raise an `AutocompressError`.
        says: a part of the message.
    """

    name: str
    call: Callable[[Path], Any]
    good: tuple[int, ...] | None = (2,)
    says: str = ""


def cli(*arguments: str) -> Callable[[Path], Any]:
    """A call of the command line; `{}` stands for the folder."""

    def call(folder: Path) -> Any:
        from autocompress.cli import main

        try:
            return main([argument.replace("{}", str(folder)) for argument in arguments])
        except SystemExit as error:  # argparse's way
            return error.code

    return call


def after(change: Callable[[Path], None], *arguments: str) -> Callable[[Path], Any]:
    """A call of the command line after a change of the folder."""

    def call(folder: Path) -> Any:
        change(folder)
        return cli(*arguments)(folder)

    return call


def api(use: Callable[[Any, Path], Any]) -> Callable[[Path], Any]:
    """A call of the package."""

    def call(folder: Path) -> Any:
        import autocompress

        return use(autocompress, folder)

    return call


def written(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Writes a file."""

    def write(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return write


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    """Changes keys of a JSON file."""

    def edit(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**data, **changes}))

    return edit


def record_with(**changes: Any) -> Callable[[Path], None]:
    """Changes the second trial's record."""

    def edit(folder: Path) -> None:
        file = folder / "run" / "trials.jsonl"
        lines = file.read_text().splitlines()
        lines[1] = json.dumps({**json.loads(lines[1]), **changes})
        file.write_text("\n".join(lines) + "\n")

    return edit


def point(folder: Path) -> Path:
    """A point of the run's front; the last, so that it is the uncompressed model's only where that is alone."""
    return max(path for path in (folder / "run" / "front").iterdir() if path.is_dir())


def swapped(folder: Path) -> None:
    """One byte of a model is another."""
    file = point(folder) / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


SEARCH = ("search", "{}/tasks.py:good", "--run-dir", "{}/new", "--trials", "2", "--workers", "1")
TASK_CASES = {
    "evaluate_raises": "KeyError",
    "evaluate_exits": "SystemExit",
    "evaluate_no_split": "TypeError",
    "evaluate_extra": "TypeError",
    "evaluate_none": "dict of figures",
    "evaluate_list": "dict of figures",
    "evaluate_int_keys": "texts",
    "evaluate_text": "finite numbers",
    "evaluate_nan_on_test": "'test'",
    "evaluate_percent": "divide percentages",
    "evaluate_loss": "named like a cost",
    "evaluate_rmse": "named like a cost",
    "evaluate_shape": "evaluate",
    "empty_test": "at least one batch",
    "empty_train": "at least one batch",
    "endless_calibration": "must end",
    "endless_selection": "must end",
    "no_samples": "at least one sample",
    "scalar_inputs": "at least one sample",
    "compiled": "compiled",
    "scripted": "scripted or traced",
    "traced": "scripted or traced",
    "training": "eval mode",
    "no_module": "nn.Module",
    "raising": "no data",
    "exiting": "SystemExit",
    "number": "must have the methods",
    "module": "is a model",
    "objectives_wrong": "maximize",
    "objectives_unknown": "figures that evaluate gives",
    "objectives_bad_type": "",
}
FLAG_CASES: dict[str, tuple[str, ...]] = {
    "threads 0": ("--threads", "0"),
    "threads -2": ("--threads", "-2"),
    "threads text": ("--threads", "two"),
    "workers 0": ("--workers", "0"),
    "workers 100000": ("--workers", "100000"),
    "cpus 1000": ("--cpus-per-trial", "1000"),
    "cpus nan": ("--cpus-per-trial", "nan"),
    "gpus 1": ("--gpus-per-trial", "1"),
    "minutes -1": ("--minutes", "-1"),
    "minutes nan": ("--minutes", "nan"),
    "minutes inf": ("--minutes", "inf"),
    "trials -1": ("--trials", "-1"),
    "seed -1": ("--seed", "-1"),
    "seed 2**32": ("--seed", str(2**32)),
    "min accuracy nan": ("--min-accuracy", "nan"),
    "min accuracy inf": ("--min-accuracy", "inf"),
    "min accuracy percent": ("--min-accuracy", "90"),
    "rungs fractions": ("--rungs", "0,1.5"),
    "rungs falling": ("--rungs", "0,9,3"),
    "rungs infinity": ("--rungs", "0,inf"),
    "learning rate inf": ("--learning-rate", "inf"),
    "learning rate 0": ("--learning-rate", "0"),
    "temperature nan": ("--temperature", "nan"),
    "alpha 2": ("--alpha", "2"),
    "budget text": ("--latency-budget", "fast"),
    "budget 0x": ("--latency-budget", "0x"),
    "budget nanx": ("--latency-budget", "nanx"),
    "budget comma": ("--latency-budget", "0.5x,"),
    "size budget 0": ("--size-budget-mib", "0"),
    "space unknown": ("--space", "resent"),
    "space a folder": ("--space", "{}"),
    "space missing file": ("--space", "{}/none.yaml"),
    "runtime unknown": ("--runtime", "tensorflow"),
    "runtime os:path": ("--runtime", "os:path"),
    "runtime os:getcwd": ("--runtime", "os:getcwd"),
    "runtime no module": ("--runtime", "no_such_module:X"),
    "runtime relative": ("--runtime", ".x:Y"),
    "sampler os:getcwd": ("--sampler", "os:getcwd"),
    "sampler os:path": ("--sampler", "os:path"),
    "importance os:getcwd": ("--importance", "os:getcwd"),
    "importance os:sep": ("--importance", "os:sep"),
    "importance unknown": ("--importance", "l3"),
    "logger unknown": ("--log-to", "stdout"),
    "profile missing": ("--profile", "{}/none.json"),
    "profile a folder": ("--profile", "{}"),
    "ray nowhere": ("--ray-address", "127.0.0.1:1"),
    "ray text": ("--ray-address", "nowhere"),
    "ray port": ("--ray-address", "127.0.0.1:99999"),
    "latency resource alone": ("--latency-resource", "pi"),
    "run dir below a file": ("--run-dir", "{}/tasks.py/run"),
    "run dir dangling": ("--run-dir", "{}/dangling"),
    "run dir exists": ("--run-dir", "{}"),
    "run dir too long": ("--run-dir", "{}/" + "x" * 300),
    "run dir unwritable": ("--run-dir", "/proc/new"),
    "config missing": ("--config", "{}/none.yaml"),
    "config a folder": ("--config", "{}"),
}
BOMB = "a: &a [x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
CONFIG_CASES: dict[str, str | bytes] = {
    "unknown key": "n_trails: 3",
    "key twice": "n_trials: 3\nn_trials: 4",
    "inner key twice": "distill: {alpha: 0.5, alpha: 0.6}",
    "text for a boolean": "early_stopping: 'false'",
    "number for a boolean": "early_stopping: 0",
    "text for a number": "n_trials: many",
    "fraction for a whole number": "n_trials: 3.5",
    "boolean for a number": "n_trials: true",
    "null": "n_threads: null",
    "list": "n_trials: [3]",
    "rungs a number": "distill: {rungs: 5}",
    "rungs infinity": "distill: {rungs: [0, .inf]}",
    "rungs text": "distill: {rungs: [0, '5']}",
    "distill a list": "distill: [1]",
    "nan": "min_accuracy: .nan",
    "infinity": "distill: {temperature: .inf}",
    "huge number": "n_trials: " + "9" * 5000,
    "huge seed": "seed: 100000000000000000000000",
    "date": "space: 2001-99-99",
    "deep": "a: " + "[" * 4000 + "]" * 4000,
    "bomb": BOMB + "n_trials: *i",
    "no mapping": "- 3",
    "empty": "",
    "no YAML": "a: [",
    "no UTF-8": b"space: \xff\xfe",
    "binary": bytes(range(256)),
    "python object": "a: !!python/object/apply:os.getcwd []",
    "too large": "a: b\n" * 100_000,
}
SPACE_CASES: dict[str, str | bytes] = {
    "no rules": "channel_grid: 8",
    "rules a mapping": "rules: {match: '0'}",
    "rule a text": "rules: ['0']",
    "unknown key": "rules: [{match: '0', prune: [0.0, 0.5]}]",
    "no match": "rules: [{prune_ratio: [0.0, 0.5]}]",
    "matches nothing": "rules: [{match: conv9, prune_ratio: [0.0, 0.5]}]",
    "pattern": "rules: [{match: 're:(', prune_ratio: [0.0, 0.5]}]",
    "ratio 1": "rules: [{match: '0', prune_ratio: [0.0, 1.0]}]",
    "ratio nan": "rules: [{match: '0', prune_ratio: [0.0, .nan]}]",
    "ratio text": "rules: [{match: '0', prune_ratio: [0.0, half]}]",
    "ratio without 0": "rules: [{match: '0', prune_ratio: [0.5]}]",
    "ratio a number": "rules: [{match: '0', prune_ratio: 0.5}]",
    "choice a list": "rules: [{match: '0', weight_bits: [32, [8]]}]",
    "bits 9": "rules: [{match: '0', weight_bits: [32, 9]}]",
    "rank 2": "rules: [{match: '0', rank_ratio: [null, 2.0]}]",
    "rank text": "rules: [{match: '0', rank_ratio: [null, 'spatial:x']}]",
    "grid 0": "channel_grid: 0\nrules: [{match: '0', prune_ratio: [0.0, 0.5]}]",
    "grid true": "channel_grid: true\nrules: [{match: '0', prune_ratio: [0.0, 0.5]}]",
    "rank grid text": "rank_grid: eight\nrules: [{match: '0', prune_ratio: [0.0, 0.5]}]",
    "fine tune unknown": "fine_tune: {speed: [null, 1]}\nrules: [{match: '0', prune_ratio: [0.0, 0.5]}]",
    "nothing to search": "rules: [{match: '0', prune_ratio: [0.0]}]",
    "bomb": BOMB + "rules: *i",
    "10 MB": "rules:\n" + "  - {match: '0', prune_ratio: [0.0, 0.5]}\n" * 230_000,
}


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _as_folder(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def _cut(name: str, share: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return change


def _doubled(folder: Path) -> None:
    file = folder / "run" / "trials.jsonl"
    file.write_text(file.read_text() * 2)


def _shortened(folder: Path) -> None:
    file = folder / "run" / "trials.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[:2]) + "\n")


def _foreign_front(folder: Path) -> None:
    (folder / "run" / "front" / ".DS_Store").write_text("x")
    (folder / "run" / "front" / "mine").mkdir()
    (folder / "run" / "front" / "mine" / "notes").write_text("x")


def _linked_point(folder: Path) -> None:
    file = point(folder) / "model.onnx"
    moved = file.rename(folder / "elsewhere.onnx")
    file.symlink_to(moved)


def _file_for_a_point(folder: Path) -> None:
    place = point(folder)
    shutil.rmtree(place)
    place.write_text("mine")


RUN_CHANGES: dict[str, Callable[[Path], None]] = {
    "run.json missing": _remove("run/run.json"),
    "run.json a folder": _as_folder("run/run.json"),
    "run.json empty": written("run/run.json", ""),
    "run.json cut": _cut("run/run.json", 0.5),
    "run.json a list": written("run/run.json", "[]"),
    "run.json no UTF-8": written("run/run.json", b"\xff\xfe"),
    "run.json deep": written("run/run.json", "[" * 100_000),
    "run.json huge number": written("run/run.json", '{"schema": ' + "1" * 5000 + "}"),
    "run.json schema": edited("run/run.json", schema=9),
    "run.json settings": edited("run/run.json", settings=[]),
    "run.json settings key": edited("run/run.json", settings={"n_trails": 3}),
    "run.json metric": edited("run/run.json", metric="acuracy"),
    "run.json metric type": edited("run/run.json", metric=3),
    "run.json direction": edited("run/run.json", direction="up"),
    "run.json reference": edited("run/run.json", reference_ms=-1),
    "run.json layers": edited("run/run.json", layers={"a": 1}),
    "run.json knobs": edited("run/run.json", knobs=[3]),
    "run.json started": edited("run/run.json", started="yesterday"),
    "run.json unknown key": edited("run/run.json", surprise=1),
    "records missing": _remove("run/trials.jsonl"),
    "records a folder": _as_folder("run/trials.jsonl"),
    "records doubled": _doubled,
    "records shortened": _shortened,
    "records empty": written("run/trials.jsonl", ""),
    "records no JSON": written("run/trials.jsonl", "{\n{\n"),
    "records no UTF-8": written("run/trials.jsonl", b"\xff\n"),
    "record number": record_with(number="1"),
    "record state": record_with(state="lost"),
    "record metrics": record_with(metrics={"accuracy": "high"}),
    "record latency": record_with(latency=[]),
    "record candidate": record_with(candidate={"drop": 3}),
    "record rungs": record_with(rungs=[1]),
    "record schema": record_with(schema=2),
    "record unknown key": record_with(surprise=1),
}
HARMLESS = ("records shortened", "records empty", "run.json knobs")
"""What a reader may show as it is; only results that are there already must not be replaced by fewer."""
READERS = {
    "report": ("report", "{}/run"),
    "status": ("status", "{}/run"),
    "pick": ("pick", "{}/run", "-o", "{}/model"),
    "compare": ("compare", "{}/run", "0", "1"),
}
STUDY_CHANGES: dict[str, Callable[[Path], None]] = {
    "study missing": _remove("run/study.journal"),
    "study empty": written("run/study.journal", ""),
    "study cut": _cut("run/study.journal", 0.4),
    "study a folder": _as_folder("run/study.journal"),
    "study no JSON": written("run/study.journal", "{\n" * 50),
    "study foreign": written("run/study.journal", "[]\n{}\n"),
    "reference missing": _remove("run/reference.file"),
    "reference another": written("run/reference.file", "x"),
    "swapped model": swapped,
    "linked model": _linked_point,
    "point a file": _file_for_a_point,
    "run.json knobs": edited("run/run.json", knobs=[]),
    "run.json space digest": edited("run/run.json", space_digest="0" * 12),
    "run.json model digest": edited("run/run.json", model_digest="0" * 12),
}


def _foreign(folder: Path) -> None:
    edited("run/run.json", signature="")(folder)


def cases() -> Iterator[Case]:
    """All of them."""
    for name, says in TASK_CASES.items():
        yield Case(f"task: {name}", cli("search", f"{{}}/tasks.py:{name}", "--run-dir", "{}/new"), (2,), says)
        if name in ("compiled", "scripted", "no_samples", "raising", "evaluate_raises"):
            yield Case(f"inspect: {name}", cli("inspect", f"{{}}/tasks.py:{name}"), (2,), "")
    for name, flags in FLAG_CASES.items():
        yield Case(f"flag: {name}", cli(*SEARCH, *flags), (2,), "")
    for name, content in CONFIG_CASES.items():
        yield Case(f"config: {name}", after(written("c.yaml", content), *SEARCH, "--config", "{}/c.yaml"), (2,), "")
    for name, content in SPACE_CASES.items():
        yield Case(f"space: {name}", after(written("s.yaml", content), *SEARCH, "--space", "{}/s.yaml"), (2,), "")
    for name, change in RUN_CHANGES.items():
        for command, arguments in READERS.items():
            good = (0, 2) if name in HARMLESS and (command != "report" or name == "run.json knobs") else (2,)
            yield Case(f"{command}: {name}", after(change, *arguments), good, "")
    for name, change in STUDY_CHANGES.items():
        yield Case(f"resume: {name}", after(change, "resume", "{}/run", "--trials", "7"), (2,), "")
        yield Case(f"refine: {name}", after(change, "refine", "{}/run", "1", "--epochs", "1"), (2,), "")
    for command, rest in (("resume", ()), ("refine", ("1", "--epochs", "1")), ("export", ("1", "--runtime", "torch"))):
        output = ("-o", "{}/out") if command == "export" else ()
        yield Case(f"{command}: a stranger's run", after(_foreign, command, "{}/run", *rest, *output), (2,), "--trust")
    yield from other_cases()


def other_cases() -> Iterator[Case]:
    """Outputs, numbers of trials, profiles, the API."""
    for name, arguments in {
        "into the run": ("pick", "{}/run", "-o", "{}/run/model"),
        "into the front": ("pick", "{}/run", "-o", "{}/run/front/trial_0777"),
        "exists": ("pick", "{}/run", "-o", "{}/run"),
        "below a file": ("pick", "{}/run", "-o", "{}/tasks.py/x"),
        "dangling": ("pick", "{}/run", "-o", "{}/dangling"),
        "nan": ("pick", "{}/run", "--min-accuracy", "nan", "-o", "{}/m"),
        "budget": ("pick", "{}/run", "--latency-budget", "slow", "-o", "{}/m"),
        "no such trial": ("pick", "{}/run", "--trial", "99", "-o", "{}/m"),
        "knee and trial": ("pick", "{}/run", "--knee", "--trial", "1", "-o", "{}/m"),
        "no such trial to compare": ("compare", "{}/run", "99"),
        "negative trial": ("compare", "{}/run", "--", "-1"),
        "figure as text file": ("report", "{}/run", "--figure", "{}/f.txt"),
        "figure below a file": ("report", "{}/run", "--figure", "{}/tasks.py/f.svg"),
        "refine 0 epochs": ("refine", "{}/run", "1", "--epochs", "0"),
        "refine the uncompressed": ("refine", "{}/run", "0", "--epochs", "1"),
        "refine nan": ("refine", "{}/run", "1", "--epochs", "1", "--learning-rate", "nan"),
        "refine no such trial": ("refine", "{}/run", "99", "--epochs", "1"),
        "export threads 0": ("export", "{}/run", "1", "--runtime", "torch", "--threads", "0", "-o", "{}/m"),
        "export runtime": ("export", "{}/run", "1", "--runtime", "os:path", "-o", "{}/m"),
        "export into the run": ("export", "{}/run", "1", "--runtime", "torch", "-o", "{}/run/m"),
        "resume trials 0": ("resume", "{}/run", "--trials", "0"),
        "resume no run": ("resume", "{}"),
        "resume gpus": ("resume", "{}/run", "--gpus-per-trial", "4"),
        "resume address": ("resume", "{}/run", "--ray-address", "127.0.0.1:1"),
        "profile candidates 3": ("profile", "{}/tasks.py:good", "--candidates", "3", "-o", "{}/p.json"),
        "profile threads -2": ("profile", "{}/tasks.py:good", "--threads", "-2", "-o", "{}/p.json"),
        "profile batch 0": ("profile", "{}/tasks.py:good", "--batch", "0", "-o", "{}/p.json"),
        "profile passes 0": ("profile", "{}/tasks.py:good", "--passes", "0", "-o", "{}/p.json"),
        "profile no output": ("profile", "{}/tasks.py:good"),
        "profile output a folder": ("profile", "{}/tasks.py:good", "-o", "{}"),
        "profile output below a file": ("profile", "{}/tasks.py:good", "-o", "{}/tasks.py/p.json"),
        "estimate unknown": ("profile", "{}/tasks.py:good", "--estimate", "pi9"),
        "estimate threads 0": ("profile", "{}/tasks.py:good", "--estimate", "raspberry_pi_5", "--threads", "0"),
        "no command": (),
        "unknown command": ("serach", "x"),
        "task without a colon": ("search", "{}/tasks.py"),
        "task a folder": ("search", "{}:task"),
        "task of no module": ("search", "no.such.module:task"),
        "id without a name": ("search", "hf:"),
        "id option": ("search", "timm:resnet18?speed=1"),
        "id number": ("search", "timm:resnet18?n_train=0"),
        "data for a file": ("search", "{}/tasks.py:good", "--data", "x.csv"),
    }.items():
        yield Case(f"cli: {name}", cli(*arguments), (2,), "")
    yield Case("pick: swapped model", after(swapped, "pick", "{}/run", "--trial", "1", "-o", "{}/m"), (0, 2), "")
    yield Case("resume: foreign files in front", after(_foreign_front, "resume", "{}/run"), (0,), "")
    loss = lambda ac, folder: ac.load(folder / "nothing", ac.load_task(f"{folder}/tasks.py:good"))  # noqa: E731
    uses: dict[str, Callable[[Any, Path], Any]] = {
        "load nothing": loss,
        "search settings text": lambda ac, f: ac.search(f"{f}/tasks.py:good", run_dir=f / "n", early_stopping="false"),
        "search threads text": lambda ac, f: ac.search(f"{f}/tasks.py:good", run_dir=f / "n", n_threads="1"),
        "search unknown setting": lambda ac, f: ac.search(f"{f}/tasks.py:good", run_dir=f / "n", n_trails=3),
        "search rungs": lambda ac, f: ac.search(f"{f}/tasks.py:good", run_dir=f / "n", distill={"rungs": [0, 2.5]}),
        "search distill None": lambda ac, f: ac.search(f"{f}/tasks.py:good", run_dir=f / "n", distill=None),
        "resume unknown setting": lambda ac, f: ac.resume(f / "run", sampler="tpe"),
        "candidate ratio": lambda ac, f: ac.Candidate(prune_ratio={"a": 1.0}),
        "candidate ratio text": lambda ac, f: ac.Candidate(prune_ratio={"a": "0.5"}),
        "candidate nan": lambda ac, f: ac.Candidate(prune_ratio={"a": float("nan")}),
        "candidate bits": lambda ac, f: ac.Candidate(weight_bits={"a": 9}),
        "candidate bits list": lambda ac, f: ac.Candidate(weight_bits={"a": [8]}),
        "candidate rank": lambda ac, f: ac.Candidate(rank_ratio={"a": 0.0}),
        "candidate key": lambda ac, f: ac.Candidate.from_dict({"prune": {}}),
        "candidate drop text": lambda ac, f: ac.Candidate.from_dict({"drop": "block"}),
        "candidate a list": lambda ac, f: ac.Candidate.from_dict([]),
        "settings rungs": lambda ac, f: ac.DistillSettings(rungs=(1, 2)),
        "settings temperature": lambda ac, f: ac.DistillSettings(temperature=float("inf")),
        "latency model missing": lambda ac, f: ac.LatencyModel.load(f / "none.json"),
        "task loss name": lambda ac, f: ac.load_task(3),
        "uniform nan": lambda ac, f: _space(ac, f).uniform(prune_ratio=float("nan")),
        "uniform bits": lambda ac, f: _space(ac, f).uniform(weight_bits=9),
        "channel grid 0": lambda ac, f: _space(ac, f, channel_grid=0),
        "rank grid 0": lambda ac, f: _space(ac, f, rank_grid=0),
        "rules None": lambda ac, f: _space(ac, f, rules=None),
    }
    for name, use in uses.items():
        yield Case(f"api: {name}", api(use), None, "")


def _space(ac: Any, folder: Path, rules: Any = (), **more: Any) -> Any:
    task = ac.load_task(f"{folder}/tasks.py:good")
    graph = ac.inspect_model(task.build_model(), task.example_inputs())
    rules = [{"match": "0", "prune_ratio": [0.0, 0.5]}] if rules == () else rules
    return ac.SearchSpace.from_rules(graph, rules, **more)


def prepare(folder: Path) -> None:
    """What every case starts from, besides the run."""
    (folder / "tasks.py").write_text(TASKS)
    (folder / "dangling").symlink_to(folder / "nowhere")
