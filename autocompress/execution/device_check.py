"""Tries one training step on the device before a search, so that a device that is too small is known at once."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import nn

from autocompress.config import SearchSettings
from autocompress.devices import PeakMemory
from autocompress.distillation.fine_tune import FineTune, Teacher
from autocompress.errors import CompressionError, InputError
from autocompress.task import Task

_BYTES_PER_MIB = 2**20


def check_device(task: Task, model: nn.Module, settings: SearchSettings, device: torch.device) -> None:
    """Trains a copy of the uncompressed model for one step under itself: no candidate needs more for its own step.

    On the CPU nothing is tried.

    Args:
        task: gives a training batch and the loss.
        model: uncompressed, on the CPU.
        settings: of the search.
        device: where trials train.

    Raises:
        InputError: the task's loss does not work there, or memory is short; says the need, and the way out.
    """
    if device.type == "cpu":
        return
    memory = PeakMemory(device)
    teacher = Teacher(copy.deepcopy(model).to(device))
    student = copy.deepcopy(model).to(device).requires_grad_(True)
    distill = replace(settings.distill, rungs=(0, 1), alpha=min(settings.distill.alpha, 0.5))  # the task's loss too
    try:
        FineTune(student, teacher, task, distill, settings.seed).advance(1)
    except (CompressionError, torch.OutOfMemoryError) as error:
        raise InputError(f"one training step of the uncompressed model must work on {device}, but: {error}") from error
    except RuntimeError as error:
        if "device" not in str(error):
            raise
        raise InputError(
            f"the task's loss must work on {device}, where outputs and targets are, but: {error}; make what it holds "
            "(class weights, say) with `.to(outputs.device)`"
        ) from error
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / _BYTES_PER_MIB
        check_share(memory.mib or 0.0, total, settings.gpus_per_trial or 1.0)


def check_share(need_mib: float, total_mib: float, gpus_per_trial: float) -> None:
    """Checks that a trial's share of a GPU holds what a training step needs.

    Raises:
        InputError: it does not.
    """
    share = min(1.0, gpus_per_trial)
    if need_mib > share * total_mib:
        enough = math.ceil(100 * need_mib / total_mib) / 100
        way_out = f"set gpus_per_trial to {enough:g} or more" if enough <= 1 else "give smaller training batches"
        raise InputError(
            f"a training step needs {need_mib:.0f} MiB, but a trial's share ({share:g}) of the GPU's {total_mib:.0f} "
            f"MiB is {share * total_mib:.0f} MiB; {way_out}"
        )
