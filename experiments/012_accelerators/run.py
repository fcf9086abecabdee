"""Fine-tune speed against a loop by hand, several trials on one GPU, and how busy a search keeps it.

run.py speed  --device cuda --models resnet50 bert-base      images or texts a second, and the share of the bare loop
run.py share  --device cuda --models resnet50                four trials on a quarter of the GPU each, against one
run.py search --device cuda                                  a search of 16 trials while nvidia-smi watches
run.py speed  --device cpu  --models resnet8 bert-tiny       the same on one CPU thread

Rows are appended to results.csv beside this file, with the device and the versions.
"""

from __future__ import annotations

import argparse
import copy
import csv
import multiprocessing
import platform
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autocompress as ac
from autocompress.config import DistillSettings
from autocompress.devices import on_device
from autocompress.distillation.fine_tune import FineTune, Teacher, soft_target_loss
from autocompress.task import Batch, SupervisedTask

RESULTS = Path(__file__).with_name("results.csv")
COLUMNS = ("what", "model", "batch", "device", "name", "torch", "steps", "bare_per_s", "ours_per_s", "share", "note")
N_ROUNDS = 5


class Logits(nn.Module):
    """The logits of a Hugging Face model, which keeps images and tokens apart by the number of dimensions."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(**{self.name: x}).logits
        return logits


@dataclass(frozen=True)
class Workload:
    """A model with random weights and batches of its size.

    Attributes:
        make: the model.
        shape: of one sample; of tokens where there is one size.
        batch: samples.
        steps: of one timed round.
        optimizer: "sgd" or "adamw".
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    steps: int
    optimizer: str

    def batches(self, n: int = 8) -> list[Batch]:
        generator = torch.Generator().manual_seed(0)
        made: list[Batch] = []
        for _ in range(n):
            if len(self.shape) == 1:
                x = torch.randint(1000, (self.batch, *self.shape), generator=generator)
            else:
                x = torch.randn(self.batch, *self.shape, generator=generator)
            made.append(((x,), torch.randint(2, (self.batch,), generator=generator)))
        return made


def bert(size: int, n_layers: int, n_heads: int) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=size, num_hidden_layers=n_layers, num_attention_heads=n_heads, intermediate_size=4 * size
    )
    return Logits(BertForSequenceClassification(config), "input_ids")


def resnet50() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return Logits(ResNetForImageClassification(ResNetConfig(num_labels=1000)), "pixel_values")


def resnet8() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic", num_labels=10
    )
    return Logits(ResNetForImageClassification(config), "pixel_values")


WORKLOADS = {
    "resnet50": Workload(resnet50, (3, 224, 224), 64, 30, "sgd"),
    "bert-base": Workload(lambda: bert(768, 12, 12), (128,), 64, 30, "adamw"),
    "resnet8": Workload(resnet8, (3, 32, 32), 64, 15, "sgd"),
    "bert-tiny": Workload(lambda: bert(128, 2, 2), (64,), 32, 15, "adamw"),
}


class BareLoop:
    """What one writes by hand: bfloat16 autocast, channels-last, a fused optimizer, nothing else."""

    def __init__(self, workload: Workload, model: nn.Module, device: torch.device, fast: bool) -> None:
        self.device, self.fast = device, fast
        layout = torch.channels_last if fast and len(workload.shape) == 3 else torch.preserve_format
        self.layout = layout
        self.teacher = _placed(model, device, layout).eval()
        self.student = _placed(model, device, layout).train()
        fused = True if device.type == "cuda" else None
        if workload.optimizer == "sgd":
            self.optimizer: Any = torch.optim.SGD(
                self.student.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=fused
            )
        else:
            self.optimizer = torch.optim.AdamW(self.student.parameters(), 1e-4, fused=fused)
        self.stream = endless(workload.batches())

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            (inputs, targets) = on_device(next(self.stream), self.device, non_blocking=True)
            assert isinstance(inputs, tuple)
            (x,) = inputs
            x = x.contiguous(memory_format=self.layout) if x.ndim == 4 else x
            with torch.autocast(self.device.type, torch.bfloat16) if self.fast else nullcontext():
                with torch.no_grad():
                    soft = self.teacher(x)
                outputs = self.student(x)
            loss = 0.9 * soft_target_loss(outputs.float(), soft.float(), 4.0)
            loss = loss + 0.1 * F.cross_entropy(outputs.float(), targets)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
            self.optimizer.step()


def _placed(model: nn.Module, device: torch.device, layout: torch.memory_format) -> nn.Module:
    placed: nn.Module = copy.deepcopy(model).to(device).to(memory_format=layout)  # type: ignore[call-overload]
    return placed


def endless(batches: list[Batch]) -> Iterator[Batch]:
    while True:
        yield from batches


def fine_tune_of(workload: Workload, model: nn.Module, device: torch.device) -> FineTune:
    parts = workload.batches()
    task = SupervisedTask(model, parts, parts[:1], parts[:1])
    settings = DistillSettings(rungs=(0, 10_000_000), optimizer=workload.optimizer)
    student = copy.deepcopy(model).to(device)
    return FineTune(student, Teacher(copy.deepcopy(model).to(device)), task, settings)


def seconds(call: Callable[[], None], device: torch.device) -> float:
    synchronize(device)
    begin = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - begin


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def speed(name: str, device: torch.device) -> dict[str, Any]:
    """Both loops in turns in one process, so that what else the machine does hits both."""
    workload = WORKLOADS[name]
    torch.manual_seed(0)
    model = workload.make().eval()
    ours = fine_tune_of(workload, model, device)
    ours.advance(5)
    assert ours.mode is not None
    bare = BareLoop(workload, model, device, ours.mode.bfloat16)
    bare.advance(5)
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    done = 5
    for _ in range(N_ROUNDS):
        done += workload.steps
        times["ours"].append(seconds(lambda: ours.advance(done), device))  # noqa: B023
        times["bare"].append(seconds(lambda: bare.advance(workload.steps), device))
    per_s = {key: workload.batch * workload.steps / statistics.median(values) for key, values in times.items()}
    share = statistics.median(b / o for b, o in zip(times["bare"], times["ours"], strict=True))
    return {
        "what": "speed", "model": name, "batch": workload.batch, "steps": workload.steps,
        "bare_per_s": round(per_s["bare"], 1), "ours_per_s": round(per_s["ours"], 1), "share": round(share, 3),
        "note": f"median of {N_ROUNDS} rounds in turns; autocast {'on' if ours.mode.bfloat16 else 'off'}",
    }  # fmt: skip


def _one_trial(name: str, device: str, ready: Any, go: Any, out: Any) -> None:
    workload, on = WORKLOADS[name], torch.device(device)
    fine_tune = fine_tune_of(workload, workload.make().eval(), on)
    fine_tune.advance(5)
    ready.release()
    go.wait()
    out.put(seconds(lambda: fine_tune.advance(5 + 4 * workload.steps), on))


def together(name: str, device: torch.device, n: int) -> float:
    """Samples a second of n processes that train at the same time."""
    context = multiprocessing.get_context("spawn")
    ready, go, out = context.Semaphore(0), context.Event(), context.Queue()
    workers = [context.Process(target=_one_trial, args=(name, str(device), ready, go, out)) for _ in range(n)]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    go.set()
    longest: float = max(out.get() for _ in workers)
    for worker in workers:
        worker.join()
    return n * 4 * WORKLOADS[name].steps * WORKLOADS[name].batch / longest


def share(name: str, device: torch.device) -> dict[str, Any]:
    one, four = together(name, device, 1), together(name, device, 4)
    return {
        "what": "share", "model": name, "batch": WORKLOADS[name].batch, "steps": 4 * WORKLOADS[name].steps,
        "bare_per_s": round(one, 1), "ours_per_s": round(four, 1), "share": round(four / one, 3),
        "note": "one trial against four at the same time",
    }  # fmt: skip


class BusyGpu:
    """The share of time in which a kernel ran on the GPU, as nvidia-smi tells it twice a second."""

    def __init__(self) -> None:
        self.samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> BusyGpu:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
        while not self._stop.wait(0.5):
            self.samples.append(float(subprocess.run(query, capture_output=True, text=True, check=True).stdout))


def search(device: torch.device) -> dict[str, Any]:
    """16 trials of the digits' classifier, four on the GPU at the same time."""
    settings: dict[str, Any] = {"n_trials": 16, "polish_points": 0, "device": device.type, "show_progress": False}
    if device.type == "cuda":
        settings |= {"gpus_per_trial": 0.25, "n_workers": 4}
    with tempfile.TemporaryDirectory() as folder, BusyGpu() if device.type == "cuda" else nullcontext() as busy:
        begin = time.perf_counter()
        ac.search("digits", run_dir=Path(folder) / "run", space="digits", **settings)
        taken = time.perf_counter() - begin
    percent = statistics.mean(busy.samples) if busy is not None else float("nan")
    note = f"16 trials in {taken:.0f} s; GPU busy {percent:.0f} % of it"
    return {"what": "search", "model": "digits", "share": round(percent / 100, 3), "note": note}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "share", "search"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", choices=WORKLOADS, default=["resnet50", "bert-base"])
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    if args.what == "search":
        rows = [search(device)]
    else:
        rows = [{"speed": speed, "share": share}[args.what](name, device) for name in args.models]
    is_new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        for row in rows:
            writer.writerow({**row, "device": device.type, "name": named, "torch": torch.__version__})
            print(row)


if __name__ == "__main__":
    main()
