"""Batch-norm statistics of a changed model, estimated again without training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from autocompress.task import Inputs, call_model


def reestimate_norms_(model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Replaces running means and variances by plain averages over `batches`, in place (EagleEye, arXiv:2007.02491).

    Only batch norms see training mode, so dropout stays off. A model without batch norm, or no batches, is left as is.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    was_training = model.training
    momenta = [norm.momentum for norm in norms]
    model.eval()
    with torch.no_grad():
        for i, inputs in enumerate(batches):
            if i == 0:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # cumulative average
                    norm.train()
            call_model(model, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)
