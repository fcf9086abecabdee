"""Records real evaluations: every candidate of the digits space, or a pool of ResNet-20 candidates; resumable.

    python record.py digits FOLDER             every candidate, fine-tuned and judged at four rungs, exported
    python record.py resnet20 FOLDER -n 150    a pool from mild to strong, before any fine-tune, without latencies
    python record.py time FOLDER               times all exported files in two passes; run it on an idle machine

FOLDER gets `trials.jsonl` (one record per candidate), `files/` (exported models) and `timings.jsonl`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import random
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from autocompress.compression import CalibrationStats, RebuildOptions, rebuild, resolve
from autocompress.config import DistillSettings
from autocompress.distillation.fine_tune import FineTune, Teacher
from autocompress.execution.trial import n_macs
from autocompress.graph import inspect_model
from autocompress.latency.clock import time_pair
from autocompress.runtimes import runtime_named
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import Choice, SearchSpace
from autocompress.task import Inputs, Task, as_inputs, call_model, load_task, predict_all

HERE = Path(__file__).parent
REFITTED = RebuildOptions(reconstruct=True)
SPECS = {"digits": "digits", "resnet20": "cifar10:resnet20"}
RUNGS = {"digits": (0, 5, 15, 45), "resnet20": (0,)}
N_JUDGED = 1000  # images of ResNet-20's selection split; the digits' has 400


def space_of(name: str, task: Task) -> SearchSpace:
    """The space of the recordings."""
    graph = inspect_model(task.build_model(), as_inputs(task.example_inputs()))
    return SearchSpace.load(str(HERE / "digits_table.yaml") if name == "digits" else "resnet_cifar", graph)


def every_candidate(space: SearchSpace) -> Iterator[Candidate]:
    """Each distinct candidate once, in an order that makes every part of the list a fair sample."""
    seen: dict[str, Candidate] = {}
    for choices in itertools.product(*(knob.choices for knob in space.knobs)):
        candidate = space.candidate({knob.name: choice for knob, choice in zip(space.knobs, choices, strict=True)})
        seen[candidate.digest] = candidate
    candidates = list(seen.values())
    random.Random(0).shuffle(candidates)
    yield from candidates


def pool(space: SearchSpace, n: int, seed: int = 0) -> Iterator[Candidate]:
    """From mild to strong: each candidate draws how often each kind of knob is moved, and how far."""
    rng = random.Random(seed)
    for _ in range(n):
        share = {kind: rng.random() ** 2 for kind in ("prune_ratio", "drop", "rank_ratio")}
        share["weight_bits"] = rng.choice([0.0, 0.5, 0.9, 1.0])
        share["drop"] *= 0.6
        choices: dict[str, Choice] = {}
        for knob in space.knobs:
            if rng.random() < share[knob.kind]:
                choices[knob.name] = rng.choice(knob.choices[1:])
        yield space.candidate(choices)


class Recorder:
    """Evaluates one candidate after another."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.task = load_task(SPECS[name])
        self.model = self.task.build_model()
        self.inputs = as_inputs(self.task.example_inputs())
        self.graph = inspect_model(self.model, self.inputs)
        self.space = space_of(name, self.task)
        self.teacher = Teacher(self.model)
        self.calibration = [as_inputs(batch) for batch in self.task.calibration_batches()]
        self.calibration_stats = CalibrationStats(self.model, self.graph, self.calibration, self.task)
        self.runtime = runtime_named("onnxruntime")
        (folder / "files").mkdir(parents=True, exist_ok=True)

    def judge(self, student: torch.nn.Module) -> dict[str, float]:
        def predict(inputs: Inputs) -> Tensor:
            with torch.no_grad():
                outputs: Tensor = call_model(student, inputs)
            return outputs

        if self.name == "digits":
            return self.task.evaluate(predict, "selection")
        from autocompress.tasks import cifar10

        images, labels = cifar10.load_images("test")
        members = cifar10.split_indices("selection")[:N_JUDGED]
        parts = members.split(250)
        outputs, targets = predict_all(predict, ((cifar10._to_inputs(images[p]), labels[p]) for p in parts))
        loss = torch.nn.functional.cross_entropy(outputs, targets).item()
        return {"accuracy": float((outputs.argmax(1) == targets).float().mean()), "loss": loss}

    def evaluate(self, candidate: Candidate) -> dict[str, object]:
        torch.manual_seed(0)
        begin = time.process_time()
        recipe = resolve(self.model, self.graph, candidate, "l2", self.calibration_stats)
        student = rebuild(self.model, self.graph, recipe, self.calibration, REFITTED)
        tune = FineTune(student, self.teacher, self.task, DistillSettings(rungs=RUNGS[self.name]), 0)
        file = self.folder / "files" / f"{candidate.digest}.onnx"
        if self.name == "digits":
            self.runtime.export(student, self.inputs, file.parent).rename(file)
        results = []
        for steps in RUNGS[self.name]:
            tune.advance(steps)
            figures = self.judge(student)
            results.append({"steps": steps, "seconds": time.process_time() - begin, **figures})
        return {
            "digest": candidate.digest,
            "candidate": candidate.to_dict(),
            "rungs": results,
            "n_params": sum(p.numel() for p in student.parameters()),
            "n_macs": n_macs(student, self.inputs),
            "size_mib": file.stat().st_size / 2**20 if file.exists() else None,
        }


def record(name: str, folder: Path, n: int) -> None:
    recorder = Recorder(name, folder)
    path = folder / "trials.jsonl"
    known = {json.loads(line)["digest"] for line in path.read_text().splitlines()} if path.exists() else set()
    candidates = list(every_candidate(recorder.space) if name == "digits" else pool(recorder.space, n))
    print(len(candidates), "candidates,", len(known), "known", flush=True)
    for candidate in candidates:
        if candidate.digest in known:
            continue
        line = json.dumps(recorder.evaluate(candidate))
        known.add(candidate.digest)
        with path.open("a") as file:
            file.write(line + "\n")


def time_files(folder: Path, n_passes: int = 2) -> None:
    """Each pass times every file in two short rounds against the uncompressed model's."""
    runtime = runtime_named("onnxruntime")
    task = load_task(SPECS["digits"])
    inputs, space = as_inputs(task.example_inputs()), space_of("digits", task)
    files = [folder / "files" / f"{candidate.digest}.onnx" for candidate in every_candidate(space)]
    reference = runtime.load(folder / "files" / f"{Candidate().digest}.onnx", 1)
    fed = reference.prepare(inputs)
    path = folder / "timings.jsonl"
    known = [json.loads(line)["digest"] for line in path.read_text().splitlines()] if path.exists() else []
    missing = [file for file in files if file.exists() and file.stem not in known]
    with path.open("a") as out:
        for _ in range(n_passes):
            for file in missing:
                session = runtime.load(file, 1)
                ours = session.prepare(inputs)
                timing = time_pair(partial(session.run, ours), partial(reference.run, fed), 2)
                out.write(json.dumps({"digest": file.stem, "ratio": timing.ratio, "ms": timing.reference_ms}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["digits", "resnet20", "time"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-n", type=int, default=150)
    args = parser.parse_args()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if args.what == "time":
        time_files(args.folder)
    else:
        record(args.what, args.folder, args.n)


if __name__ == "__main__":
    main()
