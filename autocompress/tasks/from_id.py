"""Tasks of models by id: the model's config names its kind, the user's files are the data."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.task import Batch, Inputs, Predict, Task, call_model
from autocompress.tasks.dataset import Dataset, Split, read_dataset
from autocompress.tasks.identifiers import TaskId, read_task_id
from autocompress.tasks.model_source import ModelSource
from autocompress.tasks.scoring import Metric, metric_named

_BATCH_SIZE, _EVALUATION_BATCH_SIZE, _CALIBRATION_BATCH_SIZE = 32, 32, 16
_N_CALIBRATION = 128


class IdTask:
    """A model by id with data as files; see `TaskId` for its options.

    With labels the metric is the kind's or the given one. Samples without labels are labelled by the uncompressed
    model: "agreement" is the share of samples to which the compressed model gives the same class. It is not accuracy.
    Only the id travels to workers; each process reads model and data once.
    """

    def __init__(self, task_id: TaskId) -> None:
        self._id = task_id
        self.name = f"{task_id.source}:{task_id.name}"

    @property
    def spec(self) -> str:
        """The text that makes this task again."""
        return self._id.text()

    @property
    def has_data(self) -> bool:
        """Whether there is data; without it the model can only be inspected."""
        return self._id.data is not None or self._id.inputs is not None

    @property
    def teacher_loss(self) -> str:
        """The distillation loss: "kl", "mse", "cosine" or "none"."""
        return self._id.teacher_loss or open_source(self._id).kind.teacher_loss

    @property
    def objectives(self) -> dict[str, str]:
        """Figures of `evaluate` that have a direction; the search optimises the first."""
        metric = self._metric
        found = {metric.name: metric.direction, "loss": "minimize"} if metric is not None else {}
        return found | ({self._likeness: _LIKENESS[self._likeness][1]} if self._has_unlabelled else {})

    def notes(self) -> list[str]:
        """Lines that say which data was found and which options were chosen."""
        source = open_source(self._id)
        classes = f", {source.n_outputs} classes" if source.classes else ""
        lines = [f"{self.name}: {source.kind.name} by {source.title}{classes}"]
        if not self.has_data:
            return lines
        lines += open_dataset(self._id).notes
        goals = ", ".join(f"{direction} {name}" for name, direction in self.objectives.items())
        lines.append(f"{goals}; students learn from the uncompressed model's outputs by: {self.teacher_loss}")
        if self._metric is None:
            lines.append(
                f"{self._likeness} says how like the uncompressed model a compressed one is, not how right it is"
            )
        return lines

    def build_model(self) -> nn.Module:
        """The trained model; it returns one tensor."""
        return open_source(self._id).build()

    def example_inputs(self) -> Inputs:
        """One sample of the shape that the data needs."""
        if self.has_data:
            open_dataset(self._id)  # chooses the shape
        return open_source(self._id).example_inputs()

    def train_batches(self, seed: int) -> Iterator[Batch]:
        """One epoch of shuffled batches of 32; a smaller last batch is left out unless it is the only one."""
        split = self._split("train")
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
        for places in order.split(_BATCH_SIZE):
            if len(places) == _BATCH_SIZE or len(split) < _BATCH_SIZE:
                yield split.inputs(places.tolist()), self._targets(split, "train", places)

    def calibration_batches(self) -> Iterator[Inputs]:
        """128 training samples in batches of 16."""
        split = self._split("train")
        for places in torch.arange(min(_N_CALIBRATION, len(split))).split(_CALIBRATION_BATCH_SIZE):
            yield split.inputs(places.tolist())

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The kind's loss on labels; where a sample has none, the difference to the uncompressed model's outputs."""
        targets = batch[1]
        labels = targets["label"] if isinstance(targets, Mapping) else targets
        known = ~labels.isnan() if labels.is_floating_point() else labels >= 0
        losses = []
        if bool(known.any()):
            losses.append(_label_loss(outputs[known], labels[known]) * known.sum())
        if not bool(known.all()):
            teacher = targets["teacher"][~known]
            losses.append(_likeness_loss(outputs[~known], teacher, self.teacher_loss) * (~known).sum())
        return torch.stack(losses).sum() / len(labels)

    def evaluate(self, predict: Predict, split: str) -> dict[str, float]:
        """The metric on labelled samples, likeness to the uncompressed model where some have no label, and the loss.

        Raises:
            InputError: the split is neither "selection" nor "test".
        """
        if split not in ("selection", "test"):
            raise InputError(f"`split` must be selection or test, but got {split!r}")
        samples = self._split(split)
        outputs = predict_split(predict, samples)
        known = samples.labelled
        figures: dict[str, float] = {}
        metric = self._metric
        if metric is not None:
            figures[metric.name] = metric.compute(outputs[known], samples.labels[known])
            figures["loss"] = _label_loss(outputs[known], samples.labels[known]).item()
        if self._has_unlabelled:
            teacher = teacher_outputs(self._id, split)
            figures[self._likeness] = _LIKENESS[self._likeness][0](outputs, teacher)
        return figures

    @property
    def _metric(self) -> Metric | None:
        kind = open_source(self._id).kind
        name = self._id.metric or kind.metric
        return metric_named(name) if name is not None and self._id.data is not None and kind.metric else None

    @property
    def _likeness(self) -> str:
        return open_source(self._id).kind.likeness

    @property
    def _has_unlabelled(self) -> bool:
        return self._id.inputs is not None or self._metric is None

    def _split(self, name: str) -> Split:
        return open_dataset(self._id).splits[name]

    def _targets(self, split: Split, name: str, places: Tensor) -> Any:
        labels = split.labels[places]
        if bool(split.labelled[places].all()):
            return labels
        return {"label": labels, "teacher": teacher_rows(self._id, name, places)}


def id_task(text: str, options: Mapping[str, Any] | None = None) -> Task:
    """The task that an id names; `options` as in `TaskId`."""
    task_id = read_task_id(text, options)
    if open_source(task_id).kind.name == "causal-lm":
        from autocompress.tasks.language import LanguageTask

        return LanguageTask(task_id)
    return IdTask(task_id)


@functools.lru_cache(maxsize=4)
def open_source(task_id: TaskId) -> ModelSource:
    """The model's source, opened once a process."""
    if task_id.source == "hf":
        from autocompress.tasks.huggingface import open_huggingface

        return open_huggingface(task_id)
    from autocompress.tasks.image_models import open_timm, open_torchvision

    return open_timm(task_id) if task_id.source == "timm" else open_torchvision(task_id)


@functools.lru_cache(maxsize=4)
def open_dataset(task_id: TaskId) -> Dataset:
    """The task's data, read once a process."""
    return read_dataset(task_id, open_source(task_id))


@functools.lru_cache(maxsize=2)
def _teacher(task_id: TaskId) -> nn.Module:
    return open_source(task_id).build()


@functools.lru_cache(maxsize=8)
def _known_rows(task_id: TaskId, split: str) -> dict[int, Tensor]:
    return {}


def teacher_rows(task_id: TaskId, split: str, places: Tensor) -> Tensor:
    """The uncompressed model's outputs for some samples, computed once a process."""
    known = _known_rows(task_id, split)
    missing = [place for place in places.tolist() if place not in known]
    for part in torch.tensor(missing, dtype=torch.long).split(_EVALUATION_BATCH_SIZE) if missing else ():
        inputs = open_dataset(task_id).splits[split].inputs(part.tolist())
        with torch.no_grad():
            outputs = call_model(_teacher(task_id), inputs)
        known.update(zip(part.tolist(), outputs, strict=True))
    return torch.stack([known[place] for place in places.tolist()])


def teacher_outputs(task_id: TaskId, split: str) -> Tensor:
    """The same for all samples of a split."""
    return teacher_rows(task_id, split, torch.arange(len(open_dataset(task_id).splits[split])))


def predict_split(predict: Predict, split: Split) -> Tensor:
    """Outputs for all samples of a split."""
    with torch.no_grad():
        parts = torch.arange(len(split)).split(_EVALUATION_BATCH_SIZE)
        return torch.cat([predict(split.inputs(part.tolist())).float() for part in parts])


def _label_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        return F.mse_loss(outputs.reshape(labels.shape), labels)
    return F.cross_entropy(outputs, labels)


def _likeness_loss(outputs: Tensor, teacher: Tensor, name: str) -> Tensor:
    if name == "mse":
        return F.mse_loss(outputs, teacher)
    if name == "cosine":
        return 1 - F.cosine_similarity(outputs, teacher, dim=-1).mean()
    return _kl(outputs, teacher)


def _kl(outputs: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of the softmax over the last dimension, nats, mean over the rest."""
    ours, theirs = (F.log_softmax(values, dim=-1).flatten(0, -2) for values in (outputs, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def _agreement(outputs: Tensor, teacher: Tensor) -> float:
    return float((outputs.argmax(-1) == teacher.argmax(-1)).double().mean())


def _cosine(outputs: Tensor, teacher: Tensor) -> float:
    return float(F.cosine_similarity(outputs, teacher, dim=-1).mean())


def _spearman_to_teacher(outputs: Tensor, teacher: Tensor) -> float:
    return metric_named("spearman").compute(outputs, teacher.flatten())


_LIKENESS = {
    "agreement": (_agreement, "maximize"),
    "cosine": (_cosine, "maximize"),
    "spearman_to_teacher": (_spearman_to_teacher, "maximize"),
}
"""Figure without labels -> function of outputs and the uncompressed model's outputs, and direction."""
