"""Searches prune ratios, ranks and bits of a trained PyTorch model under a measured latency budget.

Names are loaded when they are first used, so importing the package is quick and does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from autocompress.api import resume, search
    from autocompress.compression import compress
    from autocompress.config import DistillSettings
    from autocompress.distillation.fine_tune import distill
    from autocompress.errors import AutocompressError
    from autocompress.evaluation import evaluate
    from autocompress.graph import ModelGraph, inspect_model
    from autocompress.latency import LatencyModel, Measurement, measure_latency, measure_paired, profile
    from autocompress.publishing.artifact import load
    from autocompress.results.pareto import ParetoFront
    from autocompress.results.records import TrialRecord
    from autocompress.runtimes import export
    from autocompress.space.candidate import Candidate
    from autocompress.space.search_space import SearchSpace
    from autocompress.task import SupervisedTask, Task, load_task

_HOMES = {
    "AutocompressError": "errors",
    "Candidate": "space.candidate",
    "DistillSettings": "config",
    "LatencyModel": "latency",
    "Measurement": "latency",
    "ModelGraph": "graph",
    "ParetoFront": "results.pareto",
    "SearchSpace": "space.search_space",
    "SupervisedTask": "task",
    "Task": "task",
    "TrialRecord": "results.records",
    "compress": "compression",
    "distill": "distillation",
    "evaluate": "evaluation",
    "export": "runtimes",
    "inspect_model": "graph",
    "load": "publishing.artifact",
    "load_task": "task",
    "measure_latency": "latency",
    "measure_paired": "latency",
    "profile": "latency",
    "resume": "api",
    "search": "api",
}

__all__ = [
    "AutocompressError",
    "Candidate",
    "DistillSettings",
    "LatencyModel",
    "Measurement",
    "ModelGraph",
    "ParetoFront",
    "SearchSpace",
    "SupervisedTask",
    "Task",
    "TrialRecord",
    "compress",
    "distill",
    "evaluate",
    "export",
    "inspect_model",
    "load",
    "load_task",
    "measure_latency",
    "measure_paired",
    "profile",
    "resume",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autocompress' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"autocompress.{_HOMES[name]}"), name)
    globals()[name] = value  # four names are also submodules: the function must win from now on
    return value
