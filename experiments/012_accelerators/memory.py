"""How much memory judging a split of real size takes: `memory.py perplexity` or `memory.py segmentation`.

Perplexity: a vocabulary of 32,000 over 1 M tokens, batches of 4 × 512 (float32 logits of the whole split are 119 GiB).
Segmentation: 2,000 images of 256 × 256, 8 classes, batches of 16 (float32 outputs of the whole split are 3.9 GiB).
Prints the peak of the process, and what it was before.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.devices import CPU, PeakMemory
from autocompress.evaluation import evaluate_model
from autocompress.task import SupervisedTask

N_WORDS, LENGTH, N_TOKENS = 32_000, 512, 2**20
N_CLASSES, SIDE, N_IMAGES = 8, 256, 2_000


class Decoder(nn.Module):
    """Embeds tokens and scores the next one; what is between does not change what the scores take."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(N_WORDS, 16), nn.Linear(16, N_WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.embedding(tokens))
        return scores


@dataclass
class Tokens:
    """Batches of 4 × 512 tokens with the following ones as targets, made as they are asked for."""

    n_batches: int

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for seed in range(self.n_batches):
            tokens = torch.randint(N_WORDS, (4, LENGTH + 1), generator=torch.Generator().manual_seed(seed))
            yield tokens[:, :-1], tokens[:, 1:].contiguous()


@dataclass
class Images:
    """Batches of 16 images with a class for each pixel, made as they are asked for."""

    n_batches: int

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for seed in range(self.n_batches):
            generator = torch.Generator().manual_seed(seed)
            yield (
                torch.rand(16, 3, SIDE, SIDE, generator=generator),
                torch.randint(N_CLASSES, (16, SIDE, SIDE), generator=generator),
            )


def task_of(what: str) -> SupervisedTask:
    torch.manual_seed(0)
    if what == "perplexity":
        source = Tokens(N_TOKENS // (4 * LENGTH))
        return SupervisedTask(Decoder().eval(), source, source, source, metric="perplexity")
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, N_CLASSES, 1))
    images = Images(N_IMAGES // 16)
    return SupervisedTask(model.eval(), images, images, images, metric="mean_iou")


def main() -> None:
    what = sys.argv[1]
    torch.set_num_threads(1)
    task = task_of(what)
    model = task.build_model()
    before = PeakMemory(CPU).mib
    memory, begin = PeakMemory(CPU), time.perf_counter()
    figures = evaluate_model(model, task)
    print({name: round(value, 4) for name, value in figures.items()}, f"{time.perf_counter() - begin:.0f} s")
    print(f"{what}: {before or 0:.0f} MiB before, peak {memory.mib or 0:.0f} MiB")


if __name__ == "__main__":
    main()
