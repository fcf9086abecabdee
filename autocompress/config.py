"""The settings of a search: defaults, checks, and the one place that reads them from a YAML or JSON file."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from autocompress.errors import InputError

TEACHER_LOSSES = ("kl", "mse", "cosine", "none")
"""How a student learns from its teacher's outputs."""


@dataclass(frozen=True)
class DistillSettings:
    """How a student is fine-tuned under its teacher.

    Attributes:
        rungs: fine-tune steps after which a student is judged; rising, 0 is "before any training".
        learning_rate: peak of the one-cycle schedule of SGD with Nesterov momentum.
        weight_decay: of weights with two or more dimensions.
        temperature: softens both outputs; at least 1 (Hinton et al. 2015).
        alpha: weight of the teacher's outputs, in [0, 1]; the rest is the task's own loss on labels.
        teacher_loss: how a student learns from the teacher's outputs: "kl" (soft targets), "mse", "cosine" or "none";
            None is what the task names as its `teacher_loss`, else "kl" where there are classes and "mse" where not.
        feature_weight: weight of the mean squared error between intermediate features; 0 turns it off.
        feature_layers: module paths whose outputs are compared; both models must have them, with equal shapes.
        learn_scales: train the scales of 8-bit layers too (LSQ), in place of following what they see.
        l1_weight: weight of the mean magnitude of all weights; pushes single entries to zero.
        group_lasso_weight: weight of the group lasso over channel groups; pushes whole channels to zero, so that a
            model that is fine-tuned with it loses less when they are pruned.
    """

    rungs: tuple[int, ...] = (0, 20, 60, 180)
    learning_rate: float = 0.01
    weight_decay: float = 1e-4
    temperature: float = 4.0
    alpha: float = 0.9
    teacher_loss: str | None = None
    feature_weight: float = 0.0
    feature_layers: tuple[str, ...] = ()
    learn_scales: bool = False
    l1_weight: float = 0.0
    group_lasso_weight: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rungs", tuple(self.rungs))
        object.__setattr__(self, "feature_layers", tuple(self.feature_layers))
        if (
            not self.rungs
            or self.rungs[0] != 0
            or any(a >= b for a, b in zip(self.rungs, self.rungs[1:], strict=False))
        ):
            raise InputError(f"rungs must rise from 0, like [0, 20, 60, 180], but got {list(self.rungs)}")
        _check(self.learning_rate > 0, "learning_rate > 0", self.learning_rate)
        _check(self.weight_decay >= 0, "weight_decay >= 0", self.weight_decay)
        _check(self.temperature >= 1, "temperature >= 1", self.temperature)
        _check(0 <= self.alpha <= 1, "0 <= alpha <= 1", self.alpha)
        _check(self.teacher_loss in (None, *TEACHER_LOSSES), f"teacher_loss in {TEACHER_LOSSES}", self.teacher_loss)
        for name in ("feature_weight", "l1_weight", "group_lasso_weight"):
            _check(getattr(self, name) >= 0, f"{name} >= 0", getattr(self, name))
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


SENSITIVITIES = ("measured", "fisher")

ALL_THAT_FIT = 100_000
"""Trials of a search that only a time limit ends."""


@dataclass(frozen=True)
class QuantizeSettings:
    """How the grids of rounded layers are chosen.

    Attributes:
        ranges: of activations: "minmax", "moving_average", "percentile" or "mse".
        weights: scales of int8 weights: "minmax", or "mse" (those at which the weights change least).
        correct_bias: move biases so that each rounded layer's mean output stays.
    """

    ranges: str = "minmax"
    weights: str = "minmax"
    correct_bias: bool = False

    def __post_init__(self) -> None:
        rules = ("minmax", "moving_average", "percentile", "mse")
        _check(self.ranges in rules, f"ranges in {list(rules)}", self.ranges)
        _check(self.weights in ("minmax", "mse"), "weights in ['minmax', 'mse']", self.weights)


@dataclass(frozen=True)
class SearchSettings:
    """Everything that decides a search besides the task itself.

    Attributes:
        space: name of a file in `search_spaces/`, or a path to a YAML file.
        runtime: name of the target runtime.
        n_threads: threads the target runtime may use.
        latency_budget: "0.5x" or "2.0ms", or several with commas, of which the largest bounds the search and one front
            serves all; None searches the whole front.
        size_budget_mib: largest size of the runtime's file, MiB; None is no limit.
        memory_budget_mib: most memory that running a front's file may take, MiB; None is no limit. Only exported files
            are measured, so the sampler does not know of it.
        min_accuracy: smallest useful value of the metric; None is half of the uncompressed model's. Trials below it are
            not on the front, and the sampler is told so.
        n_trials: completed or failed trials after which the search ends.
        minutes: wall-clock budget for the trials; None is no limit.
        n_workers: trials at the same time; None is as many as there are CPUs for.
        cpus_per_trial, gpus_per_trial: what a trial reserves of its machine, fractions too; 0 reserves nothing.
        trial_minutes: wall-clock limit of one trial; None is no limit. A trial beyond it is a failed one.
        trial_retries: how often a trial is started again, from its last rung, after its worker or its machine died.
        patience: trials without a larger hypervolume after which the search ends; None uses all trials and minutes.
        sampler: name of the sampler.
        sensitivity: how the default sampler learns what each choice costs: "measured", or "fisher", a quick estimate.
        early_stopping: whether fine-tunes end at a rung where too many trials are better in both objectives.
        importance: name of the criterion that says which channels of a group matter.
        latency_model: path of a profile (see `autocompress profile`) that predicts latencies; None learns from the
            trials alone.
        force_latency_model: take a profile of another runtime, runtime version, number of threads, batch or device.
        reconstruct: refit the layers that lost inputs by least squares on the calibration batches, before any training.
        activation_aware: split layers so that their outputs on the calibration batches change least, not their weights.
        seed: of the sampler and of the training batches.
        ray_address: address of a running Ray cluster, or None for a local one that starts and stops by itself.
        latency_resource: name of the Ray resource of the machine that the model is for: the uncompressed model and the
            files of the front are timed and judged there. None is the driver's machine.
        dashboard: whether a local Ray shows its dashboard, on the loopback address.
        loggers: where trials are also logged: "tensorboard", "mlflow", "wandb".
        fine_tune_margin: a candidate whose measured latency is above budget * (1 + margin) gets no fine-tune.
        distill: the fine-tune.
        quantize: the grids of rounded layers.
    """

    space: str = "default"
    runtime: str = "onnxruntime"
    n_threads: int = 1
    latency_budget: str | None = None
    size_budget_mib: float | None = None
    memory_budget_mib: float | None = None
    min_accuracy: float | None = None
    n_trials: int = 40
    minutes: float | None = None
    n_workers: int | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    trial_minutes: float | None = None
    trial_retries: int = 3
    patience: int | None = None
    sampler: str = "solver"
    sensitivity: str = "measured"
    early_stopping: bool = True
    importance: str = "l2"
    latency_model: str | None = None
    force_latency_model: bool = False
    reconstruct: bool = True
    activation_aware: bool = True
    seed: int = 0
    ray_address: str | None = None
    latency_resource: str | None = None
    dashboard: bool = False
    loggers: tuple[str, ...] = ()
    fine_tune_margin: float = 0.1
    distill: DistillSettings = field(default_factory=DistillSettings)
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)

    def __post_init__(self) -> None:
        _check(self.n_trials >= 1, "n_trials >= 1", self.n_trials)
        _check(self.n_threads >= 1, "n_threads >= 1", self.n_threads)
        _check(self.patience is None or self.patience >= 1, "patience >= 1", self.patience)
        for name in ("size_budget_mib", "memory_budget_mib"):
            limit = getattr(self, name)
            _check(limit is None or limit > 0, f"{name} > 0", limit)
        _check(self.sensitivity in SENSITIVITIES, f"sensitivity in {list(SENSITIVITIES)}", repr(self.sensitivity))
        _check(self.minutes is None or self.minutes > 0, "minutes > 0", self.minutes)
        _check(self.n_workers is None or self.n_workers >= 1, "n_workers >= 1", self.n_workers)
        _check(self.cpus_per_trial >= 0, "cpus_per_trial >= 0", self.cpus_per_trial)
        _check(self.gpus_per_trial >= 0, "gpus_per_trial >= 0", self.gpus_per_trial)
        _check(self.trial_minutes is None or self.trial_minutes > 0, "trial_minutes > 0", self.trial_minutes)
        _check(self.trial_retries >= 0, "trial_retries >= 0", self.trial_retries)
        if self.latency_resource is not None and self.ray_address is None:
            raise InputError(
                f"latency_resource {self.latency_resource!r} names a machine of a cluster, so it needs ray_address"
            )
        object.__setattr__(self, "loggers", tuple(self.loggers))
        _check(self.fine_tune_margin >= 0, "fine_tune_margin >= 0", self.fine_tune_margin)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchSettings:
        """From plain values; unknown keys are errors that list near names.

        Raises:
            InputError: an unknown key or a value outside its range.
        """
        refuse_unknown_keys("a search", data, [item.name for item in fields(cls)])
        values = dict(data)
        if values.get("n_trials") is None:
            values["n_trials"] = cls.n_trials if values.get("minutes") is None else ALL_THAT_FIT
        for name, kind in (("distill", DistillSettings), ("quantize", QuantizeSettings)):
            part = values.get(name, {})
            if isinstance(part, kind):
                continue
            if not isinstance(part, Mapping):
                raise InputError(f"{name} must be a mapping of settings, but got {part!r}")
            refuse_unknown_keys(name, part, [item.name for item in fields(kind)])
            values[name] = _build(kind, part)
        return _build(cls, values)


CHANGEABLE = (
    "n_trials",
    "minutes",
    "patience",
    "n_workers",
    "cpus_per_trial",
    "gpus_per_trial",
    "trial_minutes",
    "trial_retries",
    "ray_address",
    "dashboard",
)
"""Settings that `resume` may change: none of them decides what a trial's numbers mean."""

_T = TypeVar("_T")


def _build(kind: type[_T], values: Mapping[str, Any]) -> _T:
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"a setting has a value of the wrong type: {error}") from error


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML (or JSON) settings file, unchecked; `SearchSettings.from_dict` checks it.

    Raises:
        InputError: the file is missing, is not YAML, or is not a mapping.
    """
    return read_yaml_mapping(path, "a settings file")


def read_yaml_mapping(path: Path, what: str) -> dict[str, Any]:
    """Reads a YAML file that must hold a mapping.

    Raises:
        InputError: the file is missing, is not YAML, or is not a mapping.
    """
    if not path.is_file():
        raise InputError(f"{what} must exist, but {path} does not")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{what} must be YAML, but {path} is not: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{what} must hold a mapping, but {path} holds {type(data).__name__}")
    return data


def refuse_unknown_keys(what: str, data: Mapping[str, Any], known: list[str]) -> None:
    """Raises an InputError that names the unknown keys and the nearest known ones."""
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(known)}"
            raise InputError(f"{what} has no key {key!r}; {hint}")


def _check(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise InputError(f"`{rule}` must hold, but got {value}")
