"""A small residual net with its graph and space, and a profile of it that was made up, not measured."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.graph import ModelGraph, inspect_model
from autocompress.latency.candidate_encoder import ModelShape
from autocompress.latency.layer_profiles import describe_model, layer_keys
from autocompress.latency.layer_table import LayerLatencyTable
from autocompress.latency.plan import draw_candidates
from autocompress.latency.table import Table
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import SearchSpace

INPUTS = (torch.zeros(1, 3, 8, 8),)
RULES = [
    {"match": "re:stem|head", "weight_bits": [32, 8]},
    {
        "match": "re:blocks.*",
        "prune_ratio": [0.0, 0.5],
        "drop": [False, True],
        "rank_ratio": [None, 0.5, 0.25],
        "weight_bits": [32, 8],
    },
]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    def __init__(self, n_blocks: int = 3, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(n_blocks)))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


@cache
def net(n_blocks: int = 3) -> tuple[Net, ModelGraph, SearchSpace, ModelShape]:
    torch.manual_seed(0)
    model = Net(n_blocks).eval()
    graph = inspect_model(model, INPUTS)
    return model, graph, SearchSpace.from_rules(graph, RULES), describe_model(model, graph, INPUTS)


HEAD = {
    "task": "made up",
    "runtime": "onnxruntime",
    "version": "1.0",
    "n_threads": 1,
    "batch": 1,
    "device": {"cpu": "made up"},
    "date": "2026-01-01",
    "repeatability": None,
    "clock_drift": 0.0,
}


def made_up_table(n_candidates: int = 60, noise: float = 0.01, n_blocks: int = 3, seed: int = 0) -> Table:
    """A device whose latencies follow the model's own terms, up to noise."""
    _, _, space, shape = net(n_blocks)
    candidates = draw_candidates(space, n_candidates, seed)
    pieces = made_up_pieces(candidates, n_blocks)
    ratios = true_ratios(shape, pieces, candidates)
    factors = np.random.default_rng(seed).normal(1, noise, len(ratios))
    pairs = tuple(zip(candidates, (ratios * factors).tolist(), strict=True))
    return Table(HEAD, 2.0, shape, pieces, pairs)


def made_up_pieces(candidates: list[Candidate], n_blocks: int = 3) -> dict[str, float]:
    """A time alone for each layer of these candidates and of the uncompressed net."""
    rows = layer_keys(net(n_blocks)[3], [Candidate(), *candidates])
    rng = random.Random(0)
    return {key: rng.uniform(0.02, 0.2) for key in sorted({key for row in rows for key in row if key is not None})}


def true_ratios(shape: ModelShape, pieces: dict[str, float], candidates: list[Candidate]) -> np.ndarray:
    """The made-up device: a fixed share, integer layers at 0.6 of their time alone, 0.03 for each border."""
    sums = LayerLatencyTable(shape, pieces, (32, 8)).sums(candidates).features
    borders = sums[:, 8:20:2].sum(1)
    return 0.1 + sums[:, 0] + 0.6 * sums[:, 4] + 0.03 * borders
