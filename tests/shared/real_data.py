"""Models and data as people have them: nested inputs, several outputs, texts of different lengths, half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.task import SupervisedTask


class TwoHeads(nn.Module):
    """Takes `{"image": ..., "more": [scale, shift]}` and gives `{"scores": ..., "size": ...}`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.scores, self.size = nn.Linear(16, 4), nn.Linear(16, 1)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        scale, shift = batch["more"]
        x = batch["image"] * scale[:, None, None, None] + shift[:, None, None, None]
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.conv2(x)).mean((2, 3))
        return {"scores": self.scores(x), "size": self.size(x)}


def nested_batches(n: int, seed: int, size: int = 16) -> list[tuple[Any, Any]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n // size):
        labels = torch.randint(4, (size,), generator=generator)
        image = torch.randn(size, 1, 8, 8, generator=generator) + labels[:, None, None, None].float()
        more = [torch.ones(size), torch.rand(size, generator=generator) / 10]
        made.append((({"image": image, "more": more},), {"label": labels, "size": labels[:, None] / 4}))
    return made


def both_losses(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(outputs["scores"], targets["label"]) + F.mse_loss(outputs["size"], targets["size"])


class ShareRight:
    """Accuracy of the scores alone."""

    def __init__(self) -> None:
        self.n_right, self.n = 0, 0

    def update(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
        self.n_right += int((outputs["scores"].argmax(1) == targets["label"]).sum())
        self.n += len(targets["label"])

    def compute(self) -> float:
        return self.n_right / self.n


class TwoHeadsTask(SupervisedTask):
    """Both heads are taught."""

    def taught(self, outputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return outputs["scores"], outputs["size"]


def two_heads_task() -> TwoHeadsTask:
    torch.manual_seed(0)
    model = TwoHeads()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for seed in range(6):
        for (batch,), targets in nested_batches(64, 100 + seed):
            optimizer.zero_grad()
            both_losses(model(batch), targets).backward()
            optimizer.step()
    parts = (nested_batches(64, 1), nested_batches(64, 2), nested_batches(64, 3))
    return TwoHeadsTask(model.eval(), *parts, metric=ShareRight(), loss=both_losses, name="two heads")


@dataclass
class TaggerOutput:
    logits: Tensor
    hidden: Tensor


class TextNet(nn.Module):
    """Classifies texts of any length by an attention over their tokens; padding is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)
        self.inner, self.outer = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 32**0.5
        scores = scores.masked_fill(attention_mask[:, None] == 0, -1e4)
        x = self.norm(x + scores.softmax(-1) @ self.value(x))
        x = x + self.outer(F.gelu(self.inner(x)))
        mask = attention_mask[:, :, None].to(x.dtype)
        return self.head((x * mask).sum(1) / mask.sum(1))


def text_batches(n: int, seed: int, size: int = 16) -> list[tuple[Any, Tensor]]:
    """Label 1 where tokens below 10 are common; each batch is padded to its own longest text."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n // size):
        labels = torch.randint(2, (size,), generator=generator)
        lengths = torch.randint(4, 17, (size,), generator=generator)
        longest = int(lengths.max())
        tokens = torch.randint(1, 50, (size, longest), generator=generator)
        common = torch.randint(1, 10, (size, longest), generator=generator)
        swap = torch.rand(size, longest, generator=generator) < 0.5 * labels[:, None]
        mask = (torch.arange(longest) < lengths[:, None]).long()
        ids = torch.where(swap, common, tokens) * mask
        made.append(({"input_ids": ids, "attention_mask": mask}, labels))
    return made


DYNAMIC = {name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask")}


def text_task(dtype: torch.dtype = torch.float32, **more: Any) -> SupervisedTask:
    torch.manual_seed(0)
    model = TextNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for seed in range(6):
        for inputs, targets in text_batches(256, 100 + seed, 32):
            optimizer.zero_grad()
            F.cross_entropy(model(**inputs), targets).backward()
            optimizer.step()
    parts = (text_batches(128, 1), text_batches(128, 2), text_batches(128, 3))
    example = {"input_ids": torch.ones(1, 12, dtype=torch.long), "attention_mask": torch.ones(1, 12, dtype=torch.long)}
    how = {"example_inputs": example, "dynamic_dims": DYNAMIC, "name": "texts", **more}
    return SupervisedTask(model.to(dtype).eval(), *parts, **how)
