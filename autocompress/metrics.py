"""Accuracy and cross entropy of classifiers, with the classes along any of the usual dimensions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.errors import InputError


def class_dim(outputs: Tensor, targets: Any) -> int | None:
    """The dimension of `outputs` that the classes are along: 1 or the last.

    Args:
        outputs: `(n, n_classes, ...)` as PyTorch's losses want them or, as language models give them,
            `(n, ..., n_classes)`.
        targets: class indices `(n, ...)`, probabilities of the outputs' shape, values, or anything that only the task's
            own loss understands.

    Returns:
        None where the outputs are no scores of classes: a single one for each target, or as many as there are values.
    """
    if outputs.dim() < 2:
        return None
    if isinstance(targets, Tensor) and targets.is_floating_point() and targets.shape == outputs.shape:
        found = (dim for dim in (1, -1) if outputs.shape[dim] > 1 and _are_probabilities(targets, dim))
        return next(found, None)
    if isinstance(targets, Tensor) and outputs.shape[1] > 1 and targets.shape == outputs.shape[:1] + outputs.shape[2:]:
        return 1
    return -1 if outputs.shape[-1] > 1 else None


def _are_probabilities(values: Tensor, dim: int) -> bool:
    sums = values.sum(dim)
    return bool((values >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of targets, in [0, 1], whose class has the largest output; shapes as in `class_dim`, targets are indices.

    Raises:
        InputError: the shapes do not fit, or there is one output for each target and so no class to choose.
    """
    dim = class_dim(outputs, targets)
    classes = None if dim is None else outputs.argmax(dim)
    if classes is None or classes.shape != targets.shape:
        raise InputError(
            "accuracy needs outputs (n, n_classes, ...) or (n, ..., n_classes) of at least two classes, and targets "
            f"(n, ...), but got outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}; "
            "give `metric` a function of (outputs, targets)"
        )
    return (classes == targets).double().mean().item()


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy; shapes as in `class_dim`."""
    dim = class_dim(outputs, targets)
    if dim == -1 and outputs.dim() > 2:
        same = targets.shape == outputs.shape
        outputs, targets = outputs.movedim(-1, 1), targets.movedim(-1, 1) if same else targets
    return F.cross_entropy(outputs, targets)
