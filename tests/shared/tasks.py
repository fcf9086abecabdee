"""A tiny task, whose label is the brightest quarter of an image, a net that learns it, a stand-in for a runtime."""

from __future__ import annotations

import copy
import json
import time
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.graph import inspect_model
from autocompress.runtimes import Capability
from autocompress.space.search_space import SearchSpace
from autocompress.task import Batch, Inputs, SupervisedTask, call_model

N_CLASSES = 4
WIDTH = 16


class TinyNet(nn.Module):
    """Two convolutions with batch norms, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)
        self.conv2, self.bn2 = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(WIDTH)
        self.fc = nn.Linear(4 * WIDTH, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(F.avg_pool2d(x, 2).flatten(1))


def images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with one brighter quarter, shape (n, 1, 8, 8), and which one it is, shape (n,)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 8, 8, generator=generator)
    labels = torch.randint(N_CLASSES, (n,), generator=generator)
    rows, columns = 4 * (labels // 2), 4 * (labels % 2)
    for i in range(n):
        x[i, 0, rows[i] : rows[i] + 4, columns[i] : columns[i] + 4] += 0.7
    return x, labels


def batches(n: int, seed: int, size: int = 32) -> list[Batch]:
    x, labels = images(n, seed)
    return [((a,), b) for a, b in zip(x.split(size), labels.split(size), strict=True)]


@cache
def _trained() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TinyNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model.train()
        for seed in range(6):
            for (x,), labels in batches(256, 100 + seed):
                optimizer.zero_grad()
                F.cross_entropy(model(x), labels).backward()
                optimizer.step()
    return model.eval()


def trained_model() -> nn.Module:
    """A copy of one that was trained once a session."""
    return copy.deepcopy(_trained())


def tiny_task(model: nn.Module | None = None) -> SupervisedTask:
    """The task of that model; by default of the trained one."""
    return SupervisedTask(
        model if model is not None else trained_model(),
        train=batches(128, 1),
        selection=batches(192, 2, 64),
        test=batches(192, 3, 64),
        calibration=[inputs for inputs, _ in batches(64, 4)],
        name="tiny",
    )


RULES = [
    {"match": "conv1", "prune_ratio": [0.0, 0.5], "weight_bits": [32, 8]},
    {"match": "conv2", "prune_ratio": [0.0, 0.5], "rank_ratio": [None, 0.5], "weight_bits": [32, 8]},
    {"match": "fc", "weight_bits": [32, 8]},
]
"""2 x 2 prune ratios, 2 ranks, 2 x 2 x 2 bits: 64 candidates."""


def tiny_space() -> SearchSpace:
    """The space of these rules."""
    return SearchSpace.from_rules(inspect_model(trained_model(), (images(1, 0)[0],)), RULES)


_EXPORTED: dict[int, nn.Module] = {}
"""What this process has exported to the stub, by its number of parameters."""


class StubRuntime:
    """Stands in for a runtime: a file is the number of parameters, a run takes 0.1 microseconds for each of them."""

    name = "stub"

    def capabilities(self) -> tuple[Capability, ...]:
        kernels = {"conv2d": "counts", "linear": "counts"}
        return (Capability(32, kernels), Capability(8, kernels))

    def export(self, student: nn.Module, example_inputs: Inputs, folder: Path) -> Path:
        with torch.no_grad():
            call_model(student, example_inputs)
        file = folder / "model.stub"
        n_params = sum(parameter.numel() for parameter in student.parameters())
        _EXPORTED[n_params] = student
        file.write_text(json.dumps({"n_params": n_params}).ljust(4 * n_params), encoding="utf-8")
        return file

    def load(self, file: Path, n_threads: int = 1) -> StubSession:
        return StubSession(json.loads(file.read_text(encoding="utf-8"))["n_params"])


class StubSession:
    """See `StubRuntime`."""

    def __init__(self, n_params: int) -> None:
        self.n_params = n_params
        self.cost = n_params

    def prepare(self, inputs: Inputs) -> object:
        return inputs

    def run(self, prepared: object) -> object:
        end = time.perf_counter() + 1e-7 * self.n_params
        while time.perf_counter() < end:
            pass
        return None

    def predict(self, inputs: Inputs) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = call_model(_EXPORTED[self.n_params], inputs)
        return outputs


STUB = f"{__name__}:StubRuntime"
"""What names the runtime in settings."""
