"""Which optimizer a fine-tune uses, and at which learning rate: chosen from the kinds of layers in the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from autocompress.config import DistillSettings
from autocompress.devices import device_of

_MOMENTUM = 0.9
_BETAS = (0.9, 0.999)
_ADAPTIVE = (nn.RNNBase, nn.MultiheadAttention, nn.LayerNorm, nn.RMSNorm, nn.Embedding)
"""Layers of transformers and recurrent nets, whose gradients differ in size from layer to layer."""


@dataclass(frozen=True)
class OptimizerDefaults:
    """What an optimizer takes where the settings leave it open.

    Attributes:
        learning_rate: peak of the one-cycle schedule.
        weight_decay: of weights with two or more dimensions.
    """

    learning_rate: float
    weight_decay: float


DEFAULTS = {"sgd": OptimizerDefaults(0.03, 1e-4), "adamw": OptimizerDefaults(1e-4, 0.01)}
RECURRENT_LEARNING_RATE = 1e-3


def settings_for(settings: DistillSettings, model: nn.Module) -> DistillSettings:
    """The settings with an optimizer, a learning rate and a weight decay for this model, where they are left open.

    Args:
        settings: of the fine-tune.
        model: the uncompressed model, so that all of its candidates are trained alike.
    """
    name = optimizer_for(model) if settings.optimizer == "auto" else settings.optimizer
    defaults, rate, decay = DEFAULTS[name], settings.learning_rate, settings.weight_decay
    if rate is None:
        is_recurrent = name == "adamw" and any(isinstance(module, nn.RNNBase) for module in model.modules())
        rate = RECURRENT_LEARNING_RATE if is_recurrent else defaults.learning_rate
    return replace(
        settings, optimizer=name, learning_rate=rate, weight_decay=defaults.weight_decay if decay is None else decay
    )


def optimizer_for(model: nn.Module) -> str:
    """Convolutional nets get "sgd"; nets with recurrent, attention, layer-norm or embedding layers get "adamw".

    A net with neither kind (a perceptron) gets "adamw".
    """
    modules = list(model.modules())
    has_convolutions = any(isinstance(module, nn.modules.conv._ConvNd) for module in modules)
    return "sgd" if has_convolutions and not any(isinstance(module, _ADAPTIVE) for module in modules) else "adamw"


def make_optimizer(
    student: nn.Module, settings: DistillSettings, undecayed: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).

    Weights with two or more dimensions decay, others and `undecayed` do not.

    Args:
        student: whose parameters are trained.
        settings: from `settings_for`.
        undecayed: further parameters.
    """
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [*(p for p in trained if p.ndim < 2), *undecayed], "weight_decay": 0.0},
    ]
    assert settings.learning_rate is not None, "settings_for has set it"
    fused = True if device_of(student).type == "cuda" else None  # one kernel for all parameters
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=_MOMENTUM, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=_BETAS, fused=fused)
