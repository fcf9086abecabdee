"""Accuracy and cross entropy of classifiers, with the classes along any of the usual dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.devices import tensors_in
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


MAIN_OUTPUTS = ("logits", "out", "output", "last_hidden_state")
"""Names under which models give what they are used for; in this order."""


def main_output(outputs: Any) -> Tensor:
    """The tensor by which a model with several outputs is judged and taught, unless the task chooses others.

    The output itself, the field of a mapping or dataclass that one of `MAIN_OUTPUTS` names, else the first
    floating-point tensor.

    Raises:
        InputError: there is none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    for name in MAIN_OUTPUTS:
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(found, Tensor):
            return found
    floating = (tensor for tensor in tensors_in(outputs) if tensor.is_floating_point())
    chosen = next(floating, None)
    if chosen is None:
        raise InputError(
            f"a model must give a floating-point tensor, alone or within tuples, dicts or dataclasses, but gave "
            f"{type(outputs).__name__}"
        )
    return chosen


def predicted_classes(outputs: Any, targets: Any) -> Tensor:
    """The class with the largest output for each target; shapes as in `class_dim`.

    Raises:
        InputError: the shapes do not fit, or there is one output for each target and so no class to choose.
    """
    scores = main_output(outputs)
    dim = class_dim(scores, targets)
    classes = None if dim is None else scores.argmax(dim)
    if classes is None or not isinstance(targets, Tensor) or classes.shape != targets.shape:
        found = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise InputError(
            "accuracy needs outputs (n, n_classes, ...) or (n, ..., n_classes) of at least two classes, and targets "
            f"(n, ...), but got outputs {tuple(scores.shape)} and targets {found}; "
            "give `metric` a function of (outputs, targets)"
        )
    return classes


def accuracy(outputs: Any, targets: Tensor) -> float:
    """Share of targets, in [0, 1], whose class has the largest output; shapes as in `class_dim`, targets are indices.

    Raises:
        InputError: the shapes do not fit, or there is one output for each target and so no class to choose.
    """
    return (predicted_classes(outputs, targets) == targets).double().mean().item()


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Mean cross entropy of the main output; shapes as in `class_dim`, targets of -100 are left out."""
    outputs = main_output(outputs)
    dim = class_dim(outputs, targets)
    if dim == -1 and outputs.dim() > 2:
        same = targets.shape == outputs.shape
        outputs, targets = outputs.movedim(-1, 1), targets.movedim(-1, 1) if same else targets
    return F.cross_entropy(outputs, targets)
