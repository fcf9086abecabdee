"""CIFAR-10 with one of the small nets, as a task."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from small_nets import NETS
from torch import nn

from autocompress.tasks.cifar10 import Cifar10Task


class SmallNet(Cifar10Task):
    """The ready-made CIFAR-10 task with another model; trained weights from the folder AUTOCOMPRESS_SMALL_NETS."""

    def __init__(self, net: str) -> None:
        super().__init__("resnet20")
        object.__setattr__(self, "net", net)

    def build_model(self) -> nn.Module:
        """The net in evaluation mode; with random weights where the folder has none."""
        net: str = self.net  # type: ignore[attr-defined]
        model: nn.Module = NETS[net]()
        file = Path(os.environ.get("AUTOCOMPRESS_SMALL_NETS", "/nonexistent")) / f"{net}.pt"
        if file.is_file():
            model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
