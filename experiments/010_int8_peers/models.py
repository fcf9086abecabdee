"""The models of the comparison: how each is built, its example inputs, and inputs for calibration."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.task import Inputs, load_task

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "002_zoo"))

WEIGHTS = "AUTOCOMPRESS_SMALL_NETS"
"""A folder with NAME.pt, the state dict of a small net; without it they have random weights."""


def build(entry: Mapping[str, Any], n_samples: int) -> tuple[nn.Module, Inputs, list[Inputs], Any]:
    """The model in evaluation mode, example inputs of batch 1, calibration batches of one sample, the task if any."""
    torch.manual_seed(0)
    model, example, task = BUILDERS[entry["source"]](entry)
    if entry["source"] != "task":  # trained weights keep their statistics, whose counter may be 0
        settle_norms_(model, example)
    if task is not None:
        batches = list(task.calibration_batches())
        singles = [single for batch in batches for single in _split(batch)][:n_samples]
        return model.eval(), _split(batches[0])[0], singles, task
    singles = [_random_like(example) for _ in range(n_samples)]
    return model.eval(), example, singles, None


def settle_norms_(model: nn.Module, example: Inputs) -> None:
    """Random weights with fresh statistics give vanishing activations; a few batches make them ordinary."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and int(m.num_batches_tracked or 0) == 0]
    if not norms or isinstance(example, dict):
        return
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(*(torch.rand(4, *value.shape[1:]) for value in example))
    model.eval()


def _split(batch: Inputs) -> list[Inputs]:
    if isinstance(batch, dict):
        n = len(next(iter(batch.values())))
        return [{key: value[i : i + 1] for key, value in batch.items()} for i in range(n)]
    return [tuple(value[i : i + 1] for value in batch) for i in range(len(batch[0]))]


def _random_like(example: Inputs) -> Inputs:
    def one(value: Tensor) -> Tensor:
        return torch.rand_like(value) if value.is_floating_point() else torch.randint(3, 96, value.shape)

    return {k: one(v) for k, v in example.items()} if isinstance(example, dict) else tuple(map(one, example))


def _task(entry: Mapping[str, Any]) -> tuple[nn.Module, Inputs, Any]:
    task = load_task(entry["name"])
    return task.build_model(), task.example_inputs(), task


def _small(entry: Mapping[str, Any]) -> tuple[nn.Module, Inputs, Any]:
    import small_task

    task = small_task.SmallNet(entry["name"])
    return task.build_model(), task.example_inputs(), task


def _torchvision(entry: Mapping[str, Any]) -> tuple[nn.Module, Inputs, Any]:
    import vision_ops  # type: ignore[import-not-found]  # experiments/002_zoo, see sys.path above

    vision_ops.allow_import()
    import torchvision.models

    options: dict[str, Any] = {"init_weights": True, "aux_logits": False} if entry["name"] == "googlenet" else {}
    model = torchvision.models.get_model(entry["name"], weights=None, **options)
    return model, (torch.rand(1, 3, entry["side"], entry["side"]),), None


def _timm(entry: Mapping[str, Any]) -> tuple[nn.Module, Inputs, Any]:
    import vision_ops

    vision_ops.allow_import()
    import timm

    model = timm.create_model(entry["name"], pretrained=False)
    return model, (torch.rand(1, 3, entry["side"], entry["side"]),), None


def _transformers(entry: Mapping[str, Any]) -> tuple[nn.Module, Inputs, Any]:
    import transformers

    width = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    config = transformers.BertConfig(vocab_size=1000, **width)
    model = transformers.BertForSequenceClassification(config)
    return model, {"input_ids": torch.randint(3, 96, (1, 64))}, None


BUILDERS = {
    "task": _task,
    "small": _small,
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}
