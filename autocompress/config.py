"""The settings of a search: each is declared once, with its type, default, check and help; all doors are made from it.

The doors are `search(**settings)`, the flags of the command line, the keys of a YAML or JSON file, and `resume`, which
takes those that are `changeable`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

from autocompress.errors import InputError
from autocompress.settings_schema import CheckedSettings, declare, from_mapping, setting_of
from autocompress.yaml_files import read_yaml_mapping

ALL_THAT_FIT = 100_000
"""Trials of a search that only a time limit ends."""


def _one_of(*names: str) -> Callable[[Any], bool]:
    return lambda value: value in names


def _at_least(limit: float) -> Callable[[Any], bool]:
    return lambda value: bool(value >= limit)


def _above(limit: float) -> Callable[[Any], bool]:
    return lambda value: bool(value > limit)


def _rising_from_zero(rungs: tuple[int, ...]) -> bool:
    return bool(rungs) and rungs[0] == 0 and all(a < b for a, b in pairwise(rungs))


TEACHER_LOSSES = ("kl", "mse", "cosine", "none")
"""How a student learns from its teacher's outputs."""


@dataclass(frozen=True)
class DistillSettings(CheckedSettings):
    """How a student is fine-tuned under its teacher (Hinton et al. 2015, arXiv:1503.02531)."""

    rungs: tuple[int, ...] = declare(
        (0, 20, 60, 180),
        "fine-tune steps after which a student is judged; 0 is before any training",
        "rungs rise from 0, like [0, 20, 60, 180]",
        _rising_from_zero,
    )
    optimizer: str = declare(
        "auto",
        "sgd (Nesterov momentum), adamw, or auto: SGD for convolutional nets, AdamW for others",
        "optimizer in ['auto', 'sgd', 'adamw']",
        _one_of("auto", "sgd", "adamw"),
    )
    learning_rate: float | None = declare(
        None,
        "peak of the one-cycle schedule (default: by optimizer and model)",
        "learning_rate > 0",
        _above(0),
    )
    weight_decay: float | None = declare(
        None,
        "of weights with two or more dimensions (default: 1e-4 for SGD, 0.01 for AdamW)",
        "weight_decay >= 0",
        _at_least(0),
    )
    temperature: float = declare(4.0, "softens the outputs of teacher and student", "temperature >= 1", _at_least(1))
    alpha: float = declare(
        0.9,
        "weight of the teacher's outputs; the rest is the task's own loss on labels",
        "0 <= alpha <= 1",
        lambda value: 0 <= value <= 1,
    )
    teacher_loss: str | None = declare(
        None,
        "how a student learns from the teacher's outputs: kl (soft targets), mse, cosine or none (default: what the "
        "task names as its `teacher_loss`, else kl where there are classes and mse where not)",
        f"teacher_loss in {list(TEACHER_LOSSES)}",
        _one_of(*TEACHER_LOSSES),
    )
    feature_weight: float = declare(
        0.0, "weight of the squared error between intermediate features; 0 is off", "feature_weight >= 0", _at_least(0)
    )
    feature_layers: tuple[str, ...] = declare(
        (), "module paths whose outputs are compared; where widths differ through a trained linear map"
    )
    compile: bool = declare(
        False, "compile the students' forward pass (torch.compile); it pays for itself in long fine-tunes on GPUs only"
    )
    round_from: float = declare(
        0.7,
        "share of a fine-tune after which training sees the rounding of 8-bit layers; a step before that takes about "
        "half the time",
        "0 <= round_from <= 1",
        lambda value: 0 <= value <= 1,
    )
    learn_scales: bool = declare(False, "train the scales of 8-bit layers (LSQ) instead of following what they see")
    l1_weight: float = declare(
        0.0,
        "weight of the mean magnitude of all weights; pushes single entries to zero",
        "l1_weight >= 0",
        _at_least(0),
    )
    group_lasso_weight: float = declare(
        0.0,
        "weight of the group lasso over channel groups; pushes whole channels to zero",
        "group_lasso_weight >= 0",
        _at_least(0),
    )

    def _check(self) -> None:
        if self.feature_weight > 0 and not self.feature_layers:
            raise InputError(
                "feature_weight needs feature_layers: module paths whose outputs are compared, but got none"
            )

    def changed(self, asked: Mapping[str, float]) -> DistillSettings:
        """With what a candidate asks of its own fine-tune; `steps` is its last rung, after those of ours below it."""
        values: dict[str, Any] = {name: value for name, value in asked.items() if name != "steps"}
        if "steps" in asked:
            steps = int(asked["steps"])
            values["rungs"] = (*(rung for rung in self.rungs if rung < steps), steps)
        return replace(self, **values)


_RANGES = ("minmax", "moving_average", "percentile", "mse")


@dataclass(frozen=True)
class QuantizeSettings(CheckedSettings):
    """How the grids of rounded layers are chosen."""

    ranges: str = declare(
        "minmax",
        f"ranges of activations: {', '.join(_RANGES)}",
        f"ranges in {list(_RANGES)}",
        _one_of(*_RANGES),
        flag="quantize-ranges",
    )
    weights: str = declare(
        "minmax",
        "scales of int8 weights: minmax, or mse (those at which the weights change least)",
        "weights in ['minmax', 'mse']",
        _one_of("minmax", "mse"),
        flag="quantize-weights",
    )
    correct_bias: bool = declare(False, "move biases so that each rounded layer's mean output stays")


@dataclass(frozen=True)
class SearchSettings(CheckedSettings):
    """Everything that decides a search besides the task itself."""

    space: str = declare("default", "name of a file in search_spaces/, or path of a YAML file")
    runtime: str = declare("onnxruntime", "target runtime")
    n_threads: int = declare(
        1, "threads that the target runtime may use", "n_threads >= 1", _at_least(1), flag="threads"
    )
    latency_budget: str | None = declare(
        None,
        "0.5x of the uncompressed latency, or 2.0ms; several with commas, of which the largest bounds the search "
        "(default: the whole front)",
    )
    size_budget_mib: float | None = declare(
        None, "largest size of the runtime's file, MiB (default: no limit)", "size_budget_mib > 0", _above(0)
    )
    memory_budget_mib: float | None = declare(
        None,
        "most memory that running a file of the front may take, MiB; exported files alone are measured (default: no "
        "limit)",
        "memory_budget_mib > 0",
        _above(0),
    )
    min_accuracy: float | None = declare(
        None,
        "worst useful value of the metric, the largest of a metric that is minimised; trials beyond it are not on the "
        "front (default: half of the uncompressed model's, or twice where it is minimised)",
    )
    n_trials: int = declare(
        40,
        "complete, stopped or failed trials after which the search ends (default: 40; with --minutes as many as fit)",
        "n_trials >= 1",
        _at_least(1),
        flag="trials",
        changeable=True,
    )
    minutes: float | None = declare(
        None,
        "time of this start in all, all of which is used (default: no limit)",
        "minutes > 0",
        _above(0),
        changeable=True,
    )
    n_workers: int | None = declare(
        None,
        "trials at the same time (default: as many as there are CPUs for)",
        "n_workers >= 1",
        _at_least(1),
        flag="workers",
        alias="max-concurrent",
        changeable=True,
    )
    cpus_per_trial: float = declare(
        1.0, "CPUs that a trial reserves, fractions too", "cpus_per_trial >= 0", _at_least(0), changeable=True
    )
    gpus_per_trial: float = declare(
        0.0, "GPUs that a trial reserves, fractions too", "gpus_per_trial >= 0", _at_least(0), changeable=True
    )
    device: str = declare(
        "auto",
        "where models are compressed, trained and judged: cpu, cuda, cuda:1, mps or auto (the accelerator that Ray "
        "gave the trial or that the worker sees, else the CPU)",
        "device in auto, cpu, cuda, cuda:1, mps or the like",
        lambda value: re.fullmatch(r"[a-z]+(:\d+)?", value) is not None,
        changeable=True,
    )
    trial_minutes: float | None = declare(
        None, "a trial fails after this time (default: no limit)", "trial_minutes > 0", _above(0), changeable=True
    )
    trial_retries: int = declare(
        3, "restarts of a trial whose worker or machine died", "trial_retries >= 0", _at_least(0), changeable=True
    )
    patience: int | None = declare(
        None,
        "the search ends after this number of trials without a larger hypervolume (default: never)",
        "patience >= 1",
        _at_least(1),
        changeable=True,
    )
    inherit_weights: bool = declare(
        True, "candidates may start from the weights of a trained trial, not only from the uncompressed model's"
    )
    polish_share: float = declare(
        0.6,
        "share of the minutes in which the front's points are trained further",
        "0 <= polish_share <= 0.8",
        lambda value: 0 <= value <= 0.8,
        changeable=True,
    )
    polish_points: int = declare(
        8,
        "most front points that are trained further; 0 polishes none",
        "polish_points >= 0",
        _at_least(0),
        changeable=True,
    )
    polish_steps: int | None = declare(
        None,
        "training steps of each polished point (default: with --minutes what time is left, else four times the last "
        "rung)",
        "polish_steps >= 1",
        _at_least(1),
        changeable=True,
    )
    sampler: str = declare("solver", "solver, tpe, nsga2, random or package.module:function")
    sensitivity: str = declare(
        "measured",
        "how the default sampler learns what each choice costs: measured, or fisher (a quick estimate)",
        "sensitivity in ['measured', 'fisher']",
        _one_of("measured", "fisher"),
    )
    early_stopping: bool = declare(True, "end fine-tunes whose Pareto rank is low")
    importance: str = declare(
        "l2",
        "which channels of a group matter: l2, l1, fpgm, bn_scale, taylor, activation, "
        "entropy, random or package.module:function",
    )
    latency_model: str | None = declare(
        None,
        "path of a profile of the target device (see `autocompress profile`), which predicts latencies (default: "
        "learned from the trials)",
        flag="profile",
        metavar="DEVICE.json",
    )
    force_latency_model: bool = declare(
        False, "take a profile of another runtime version, device or batch all the same", flag="force-profile"
    )
    reconstruct: bool = declare(
        True, "refit the layers that lost inputs by least squares on the calibration batches, before any training"
    )
    activation_aware: bool = declare(
        True, "split layers so that their outputs on the calibration batches change least, not their weights"
    )
    seed: int = declare(
        0, "of the sampler and of the training batches", "0 <= seed < 2**32", lambda value: 0 <= value < 2**32
    )
    ray_address: str | None = declare(
        None, "of a running Ray cluster, or auto (default: a local one, started and stopped here)", changeable=True
    )
    latency_resource: str | None = declare(
        None,
        "Ray resource of the machine that the model is for: files are timed and judged there (default: this machine)",
        metavar="NAME",
    )
    dashboard: bool = declare(False, "show the dashboard of a local Ray, on the loopback address", changeable=True)
    loggers: tuple[str, ...] = declare(
        (), "where trials are also logged: tensorboard, mlflow, wandb", flag="log-to", metavar="NAMES"
    )
    fine_tune_margin: float = declare(
        0.1,
        "a candidate whose measured latency is above budget * (1 + margin) gets no fine-tune",
        "fine_tune_margin >= 0",
        _at_least(0),
    )
    distill: DistillSettings = declare(DistillSettings, "the fine-tune")
    quantize: QuantizeSettings = declare(QuantizeSettings, "the grids of rounded layers")

    def _check(self) -> None:
        if self.latency_resource is not None and self.ray_address is None:
            raise InputError(
                f"latency_resource {self.latency_resource!r} names a machine of a cluster, so it needs ray_address"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchSettings:
        """From plain values; unknown keys are errors that list near names.

        Without `n_trials`, or with None, it is the default, or as many as fit where `minutes` are given.

        Raises:
            InputError: an unknown key, a value of another type, or one outside its range.
        """
        values = {"n_trials": None, **data}
        if values["n_trials"] is None:
            values["n_trials"] = cls.n_trials if values.get("minutes") is None else ALL_THAT_FIT
        return from_mapping(cls, "a search", values)


class ChangeableDict(TypedDict, total=False):
    """Names and types of the settings that `resume` takes; a test holds it against `SearchSettings`."""

    n_trials: int
    minutes: float | None
    n_workers: int | None
    cpus_per_trial: float
    gpus_per_trial: float
    device: str
    trial_minutes: float | None
    trial_retries: int
    patience: int | None
    polish_share: float
    polish_points: int
    polish_steps: int | None
    ray_address: str | None
    dashboard: bool


class SettingsDict(ChangeableDict, total=False):
    """Names and types of the settings that `search` takes by keyword; a test holds it against `SearchSettings`."""

    runtime: str
    n_threads: int
    latency_budget: str | None
    size_budget_mib: float | None
    memory_budget_mib: float | None
    min_accuracy: float | None
    sampler: str
    sensitivity: str
    early_stopping: bool
    importance: str
    latency_model: str | None
    force_latency_model: bool
    reconstruct: bool
    inherit_weights: bool
    activation_aware: bool
    seed: int
    latency_resource: str | None
    loggers: tuple[str, ...]
    fine_tune_margin: float
    distill: DistillSettings | Mapping[str, Any]
    quantize: QuantizeSettings | Mapping[str, Any]


CHANGEABLE = tuple(item.name for item in fields(SearchSettings) if setting_of(item).changeable)
"""Settings that `resume` may change."""


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML (or JSON) settings file, unchecked; `SearchSettings.from_dict` checks it.

    Raises:
        InputError: the file is missing, is not YAML, or is not a mapping.
    """
    return read_yaml_mapping(path, "a settings file")
