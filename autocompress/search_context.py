"""The data that all trials of a search share; each worker gets it once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autocompress.compression import CalibrationStats
from autocompress.compression.low_rank.moments import StoredMoments
from autocompress.config import SearchSettings
from autocompress.devices import CPU, find_device, has_float64, model_on, on_device
from autocompress.errors import InputError
from autocompress.graph import ModelGraph
from autocompress.results.objectives import Objectives
from autocompress.space.search_space import SearchSpace
from autocompress.task import Task
from autocompress.task_access import calibration_of


@dataclass(frozen=True)
class SearchContext:
    """The data that all trials of a search share.

    Attributes:
        task: of the search.
        model: the uncompressed model.
        graph: of the model.
        settings: of the search.
        reference: the uncompressed model's file for the runtime, as bytes.
        objectives: of the search.
        moments: see `moments_of`.
        half_range_weights: see `Recipe`.
        teacher_file: of the uncompressed model for an engine that runs it faster than torch, as bytes, or None.
    """

    task: Task
    model: nn.Module
    graph: ModelGraph
    settings: SearchSettings
    reference: bytes
    objectives: Objectives
    moments: Mapping[str, NDArray[np.float64]] | None = None
    half_range_weights: bool = False
    teacher_file: bytes | None = None


def device_here(settings: SearchSettings) -> torch.device:
    """Where this process computes, outside of trials: the settings' device.

    The driver of a cluster need not have the workers' device, and then takes the CPU.

    Raises:
        InputError: there is no such device, and no cluster that could have it.
    """
    try:
        return find_device(settings.device)
    except InputError:
        if settings.ray_address is None:
            raise
        return CPU


def threads_of(settings: SearchSettings) -> int:
    """Threads of a worker."""
    return max(1, int(settings.cpus_per_trial))


def moments_of(context: SearchContext, space: SearchSpace) -> dict[str, NDArray[np.float64]] | None:
    """Second moments of what the layers read, for all workers; None where no choice needs them.

    They are NumPy's arrays, which all workers of a machine read in the object store's memory without a copy. Of a model
    whose moments take too much memory, the workers read them from the cache folder one by one; see `cached_moments`.
    """
    if not context.settings.activation_aware or all(knob.kind != "rank_ratio" for knob in space.knobs):
        return None
    device = device_here(context.settings)
    device = device if has_float64(device) else CPU
    calibration = on_device(list(calibration_of(context.task)), device)
    moments = CalibrationStats(model_on(context.model, device), context.graph, calibration).low_rank.moments
    if isinstance(moments, StoredMoments):
        return None
    return {name: second.numpy() for name, second in moments.items()}
