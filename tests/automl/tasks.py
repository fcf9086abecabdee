"""A tiny task: 8x8 images whose label is the brightest quarter, and a net of two convolutions that learns it."""

from __future__ import annotations

import copy
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.graph import inspect_model
from autocompress.space import SearchSpace
from autocompress.task import Batch, SupervisedTask

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
