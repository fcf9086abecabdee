"""Lets torchvision be imported where its compiled detection ops do not load (its only builds are linked to CUDA)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SUPPRESSIONS = ("nms", "qnms")
_LIBRARIES: list[torch.library.Library] = []


def allow_import() -> None:
    """Declares the two ops for which torchvision registers shapes when it is imported; no classifier calls them."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _LIBRARIES:
        return
    try:
        torch.ops.load_library(str(Path(spec.origin).parent / "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in _SUPPRESSIONS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)
