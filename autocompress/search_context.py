"""The data that all trials of a search share; each worker gets it once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from autocompress.compression import CalibrationStats
from autocompress.config import SearchSettings
from autocompress.graph import ModelGraph
from autocompress.results.objectives import Objectives
from autocompress.space.search_space import SearchSpace
from autocompress.task import Task, as_inputs


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
    """

    task: Task
    model: nn.Module
    graph: ModelGraph
    settings: SearchSettings
    reference: bytes
    objectives: Objectives
    moments: Mapping[str, NDArray[np.float64]] | None = None
    half_range_weights: bool = False


def moments_of(context: SearchContext, space: SearchSpace) -> dict[str, NDArray[np.float64]] | None:
    """Second moments of what the layers read, for all workers; None where no choice needs them.

    They are NumPy's arrays, which all workers of a machine read in the object store's memory without a copy.
    """
    if not context.settings.activation_aware or all(knob.kind != "rank_ratio" for knob in space.knobs):
        return None
    calibration = [as_inputs(inputs) for inputs in context.task.calibration_batches()]
    moments = CalibrationStats(context.model, context.graph, calibration).low_rank.moments
    return {name: second.numpy() for name, second in moments.items()}
