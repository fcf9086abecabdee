"""The short fine-tune of a student under its teacher, in rungs that continue where the last one stopped.

Loss: alpha T^2 KL(teacher / T || student / T) + (1 - alpha) task loss (Hinton et al. 2015, arXiv:1503.02531), and where
asked the distance of intermediate features, see `FeatureLoss`.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.compression import GroupLasso, l1_penalty, learn_scales_, snap_biases_, sparse_weights
from autocompress.config import DistillSettings
from autocompress.distillation.feature_loss import FeatureLoss
from autocompress.distillation.optimizers import make_optimizer, settings_for
from autocompress.errors import CompressionError, InputError
from autocompress.graph import inspect_model
from autocompress.metrics import class_dim
from autocompress.settings_schema import require_count
from autocompress.task import Batch, Inputs, Task, as_inputs, call_model

Turn = Callable[[], AbstractContextManager[None]]
_WARM_UP_SHARE = 0.1
_MAX_GRAD_NORM = 5.0


@dataclass(frozen=True)
class FastMode:
    """What makes training faster on this machine.

    Attributes:
        bfloat16: forward passes run under bfloat16 autocast.
        channels_last: images are in channels-last memory.
    """

    bfloat16: bool
    channels_last: bool = False

    def __call__(self) -> AbstractContextManager[object]:
        """Context of a forward pass."""
        return torch.autocast("cpu", torch.bfloat16) if self.bfloat16 else nullcontext()

    def layout(self, inputs: Inputs) -> Inputs:
        """The same inputs, images in the memory layout of the mode."""
        if not self.channels_last:
            return inputs
        if isinstance(inputs, dict):
            return {name: _channels_last(value) for name, value in inputs.items()}
        return tuple(_channels_last(value) for value in inputs)


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


_MODES = (FastMode(False), FastMode(False, channels_last=True), FastMode(True, channels_last=True))


def choose_mode(model: nn.Module, inputs: Inputs) -> FastMode:
    """Times two forward passes in each mode, after one to warm up, and takes the fastest.

    On a GPU plain float32 is kept. A mode that some layer has no kernel for (oneDNN's LSTM on some machines in
    bfloat16) is left out.
    """
    if next((p.device.type for p in model.parameters()), "cpu") != "cpu":
        return _MODES[0]
    values = inputs.values() if isinstance(inputs, dict) else inputs
    has_images = any(value.ndim == 4 for value in values)
    seconds: dict[FastMode, float] = {}
    for mode in _MODES if has_images else (FastMode(False), FastMode(True)):
        try:
            seconds[mode] = _forward_seconds(model, mode, mode.layout(inputs))
        except RuntimeError:
            if not mode.bfloat16:
                raise
    return min(seconds, key=lambda mode: seconds[mode])


def _mode_of(saved: list[bool] | bool) -> FastMode:
    """The mode in a state; of older versions it is one value for both."""
    return FastMode(saved, saved) if isinstance(saved, bool) else FastMode(*saved)


def _forward_seconds(model: nn.Module, mode: FastMode, inputs: Inputs) -> float:
    with torch.no_grad(), mode():
        call_model(model, inputs)
        begin = time.perf_counter()
        for _ in range(2):
            call_model(model, inputs)
    return time.perf_counter() - begin


class Teacher:
    """The uncompressed model, whose outputs on a stream of batches are computed once and kept.

    Outputs are kept by position in the stream and given again only for the very same inputs (shape and checksum) in the
    same mode, so that a task whose batches differ each time is still right, just slower.
    """

    def __init__(self, model: nn.Module, mode: FastMode | None = None) -> None:
        self.model = model.eval()
        self.mode = mode
        self._kept: dict[int, tuple[bytes, Tensor]] = {}

    def outputs(self, position: int, inputs: Inputs, mode: FastMode | None = None) -> Tensor:
        """float32 outputs for the batch at `position` of the stream; see `run` for the mode."""
        mode = mode or self.mode_for(inputs)
        key = _checksum(inputs) + bytes([mode.bfloat16, mode.channels_last])
        kept = self._kept.get(position)
        if kept is None or kept[0] != key:
            kept = (key, self.run(inputs, mode))
            self._kept[position] = kept
        return kept[1]

    def run(self, inputs: Inputs, mode: FastMode | None = None) -> Tensor:
        """float32 outputs, without gradients; in that mode, by default in the one that is faster here."""
        mode = mode or self.mode_for(inputs)
        with torch.no_grad(), mode():
            outputs: Tensor = call_model(self.model, mode.layout(inputs)).float()
        return outputs

    def mode_for(self, inputs: Inputs) -> FastMode:
        """The mode that is faster on this machine, chosen on these inputs the first time."""
        if self.mode is None:
            self.mode = choose_mode(self.model, inputs)
        return self.mode


def _checksum(inputs: Inputs) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for value in inputs.values() if isinstance(inputs, dict) else inputs:
        digest.update(f"{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.digest()


class FineTune:
    """Trains one student; `advance` continues from where it stopped.

    In layers that were made sparse, entries that are exactly zero at the start stay zero; others train all entries.

    Args:
        student: trained in place.
        teacher: the uncompressed model.
        task: gives batches and the loss on labels.
        settings: of the fine-tune; its last rung is the length of the learning-rate schedule.
        seed: of the batches.
        turn: context held for each step, for example a turn at the machine's cores.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        task: Task,
        settings: DistillSettings,
        seed: int = 0,
        turn: Turn = nullcontext,
    ) -> None:
        self.student, self.teacher, self.task, self.turn = student, teacher, task, turn
        self.settings = settings_for(settings, teacher.model)
        self.step = 0
        self.mode: FastMode | None = None  # chosen at the first step, then kept: also on another machine
        self._seed = seed
        self._batches = _stream(task, seed)
        if settings.learn_scales:
            learn_scales_(student)
        self._features = self._feature_loss() if settings.feature_weight else None
        adapters = [] if self._features is None else self._features.adapters.parameters()
        self._optimizer = make_optimizer(student, self.settings, adapters)
        self._masks = _zero_masks(student)
        self._trained: dict[str, Tensor] = {}  # what settling the biases has moved, as training left it
        self._lasso = _group_lasso(student, task) if settings.group_lasso_weight else None

    def advance(self, to_step: int) -> None:
        """Trains until `to_step` steps are done in all; leaves the student in evaluation mode.

        Raises:
            CompressionError: the loss is not finite.
        """
        vectors = {name: tensor for name, tensor in _named_tensors(self.student) if tensor.dim() == 1}
        with torch.no_grad():
            for name, value in self._trained.items():
                vectors[name].copy_(value)
        self.student.train()
        while self.step < to_step:
            with self.turn():
                self._train_one(next(self._batches))
            self.step += 1
        before = {name: tensor.detach().clone() for name, tensor in vectors.items()}
        snap_biases_(self.student.eval())
        self._trained = {name: value for name, value in before.items() if not torch.equal(value, vectors[name])}

    def state_dict(self) -> dict[str, Any]:
        """Student, its biases as trained, optimizer, position, mode, random state (dropout); tensors and numbers."""
        return {
            "step": self.step,
            "fast": None if self.mode is None else [self.mode.bfloat16, self.mode.channels_last],
            "student": self.student.state_dict(),
            "trained": self._trained,
            "optimizer": self._optimizer.state_dict(),
            "adapters": {} if self._features is None else self._features.adapters.state_dict(),
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state; the stream of batches is wound forward."""
        self.student.load_state_dict(state["student"])
        self._trained = dict(state["trained"])
        self._masks = _zero_masks(self.student)
        if self._features is not None:
            self._features.adapters.load_state_dict(state["adapters"])
        self._optimizer.load_state_dict(dict(state["optimizer"]))
        self.step = int(state["step"])
        self.mode = None if state["fast"] is None else _mode_of(state["fast"])
        self._batches = _stream(self.task, self._seed)
        for _ in range(self.step):
            next(self._batches)
        torch.set_rng_state(state["random"])

    def _train_one(self, batch: Batch) -> None:
        inputs, _ = batch
        settings = self.settings
        mode = self.mode = self.mode or self.teacher.mode_for(inputs)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(self.step, settings.rungs[-1])  # type: ignore[operator]
        if self._features is None:
            soft = self.teacher.outputs(self.step, inputs, mode)
            loss = self._loss(self._outputs(inputs, mode), soft, batch)
        else:  # features need a forward pass of the teacher each time; outputs alone are computed once and kept
            with self._features.watch() as (ours, theirs):
                soft = self.teacher.run(inputs, mode)
                loss = self._loss(self._outputs(inputs, mode), soft, batch)
            loss = loss + settings.feature_weight * self._features(ours, theirs)
        if not bool(torch.isfinite(loss)):
            raise CompressionError(
                f"the fine-tune's loss must be finite, but is {loss.item()} after {self.step} steps; "
                f"lower learning_rate ({settings.learning_rate})"
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), _MAX_GRAD_NORM)
        self._optimizer.step()
        with torch.no_grad():
            for weight, mask in self._masks:
                weight.mul_(mask)

    def _outputs(self, inputs: Inputs, mode: FastMode) -> Tensor:
        with mode():
            outputs: Tensor = call_model(self.student, mode.layout(inputs)).float()
        return outputs

    def _feature_loss(self) -> FeatureLoss:
        inputs, _ = next(_stream(self.task, self._seed))
        return FeatureLoss(self.student, self.teacher.model, self.settings.feature_layers, inputs)

    def _loss(self, outputs: Tensor, soft: Tensor, batch: Batch) -> Tensor:
        named = self.settings.teacher_loss or getattr(self.task, "teacher_loss", None)
        alpha, temperature = (0.0 if named == "none" else self.settings.alpha), self.settings.temperature
        loss = torch.zeros((), device=outputs.device)
        if alpha > 0:
            loss = loss + alpha * teaching_loss(outputs, soft, temperature, batch[1], named)
        if alpha < 1:
            loss = loss + (1 - alpha) * self.task.loss(outputs, batch)
        if self.settings.l1_weight:
            loss = loss + self.settings.l1_weight * l1_penalty(self.student)
        if self._lasso is not None:
            loss = loss + self.settings.group_lasso_weight * self._lasso()
        return loss


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def teaching_loss(outputs: Tensor, soft: Tensor, temperature: float, targets: Any, named: str | None = None) -> Tensor:
    """How far the student is from its teacher: soft targets where there are classes, else the mean squared difference.

    The latter serves regression, and scores of labels that do not exclude each other (Ba and Caruana 2014).

    Args:
        outputs: of the student.
        soft: of the teacher, same shape.
        temperature: at least 1.
        targets: of the batch; they say where the classes are, see `autocompress.metrics.class_dim`.
        named: "kl", "mse" or "cosine" (1 - cosine similarity along the last dimension) in place of the rule above.
    """
    if named == "cosine":
        return 1 - F.cosine_similarity(outputs, soft, dim=-1).mean()
    dim = class_dim(outputs, targets)
    if dim is None and named == "kl":
        dim = -1
    if dim is None or named == "mse":
        return F.mse_loss(outputs, soft)
    return soft_target_loss(outputs.movedim(dim, -1), soft.movedim(dim, -1), temperature)


def soft_target_loss(outputs: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(soft / T) || softmax(outputs / T)) over the last dimension, averaged over everything else.

    From Hinton, Vinyals and Dean (2015).

    Args:
        outputs: logits of the student, shape (..., n_classes).
        soft: logits of the teacher, same shape.
        temperature: at least 1.
    """
    student = F.log_softmax(outputs / temperature, dim=-1).flatten(0, -2)
    teacher = F.log_softmax(soft / temperature, dim=-1).flatten(0, -2)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def distill(
    student: nn.Module,
    teacher: nn.Module,
    task: Task,
    steps: int = 200,
    *,
    settings: DistillSettings | None = None,
    seed: int = 0,
) -> nn.Module:
    """Fine-tunes `student` in place under `teacher` for so many steps; returns it in evaluation mode.

    Raises:
        InputError: `steps` is no positive whole number.
        CompressionError: the loss is not finite.
    """
    require_count("steps", steps)
    base = settings or DistillSettings()
    values = {**base.__dict__, "rungs": (0, steps)}
    FineTune(student, Teacher(copy.deepcopy(teacher)), task, DistillSettings(**values), seed).advance(steps)
    return student


def _zero_masks(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Each trained weight of a layer that was made sparse, and a mask that is False where it is zero."""
    return [(weight, weight.detach() != 0) for weight in sparse_weights(model) if weight.requires_grad]


def _group_lasso(student: nn.Module, task: Task) -> GroupLasso:
    """Over the channel groups that the student itself has; taken as the rules say, since nothing is removed."""
    return GroupLasso(student, inspect_model(student, as_inputs(task.example_inputs()), verify=False))


def _stream(task: Task, seed: int) -> Iterator[Batch]:
    """Batches without end: the epochs of seed, seed + 1, ..."""
    while True:
        n_batches = 0
        for batch in task.train_batches(seed):
            n_batches += 1
            yield batch
        if n_batches == 0:
            raise InputError("train_batches must give at least one batch, but gave none")
        seed += 1


def _schedule(step: int, n_steps: int) -> float:
    """Share of the peak learning rate: a linear rise over the first tenth, then a half cosine to zero."""
    warm_up = max(1.0, _WARM_UP_SHARE * n_steps)
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    progress = min(1.0, (step - warm_up) / max(1.0, n_steps - warm_up))
    return 0.5 * (1 + math.cos(math.pi * progress))
