"""The short fine-tune of a student under its teacher, in rungs that continue where the last one stopped.

Loss: alpha T^2 KL(teacher / T || student / T) + (1 - alpha) task loss (Hinton et al. 2015, arXiv:1503.02531), and where
asked the distance of intermediate features, see `FeatureLoss`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.batches import counted, n_samples, parts_of
from autocompress.compression import (
    GroupLasso,
    delay_rounding_,
    l1_penalty,
    learn_scales_,
    snap_biases_,
    sparse_weights,
)
from autocompress.config import DistillSettings
from autocompress.devices import CPU, device_of, full_precision, is_half, model_on, on_device, stream_to
from autocompress.distillation.feature_loss import FeatureLoss
from autocompress.distillation.optimizers import make_optimizer, settings_for
from autocompress.distillation.precision import FastMode, choose_mode, saved_mode
from autocompress.distillation.schedule import CosineSchedule
from autocompress.distillation.teacher import Teacher, as_float32
from autocompress.errors import CompressionError, InputError
from autocompress.graph import inspect_model
from autocompress.metrics import class_dim, main_output
from autocompress.settings_schema import require_count
from autocompress.task import Batch, Inputs, Task, call_model
from autocompress.task_access import examples_of

Turn = Callable[[], AbstractContextManager[None]]
_MAX_GRAD_NORM = 5.0
_OBSERVE_EVERY = 4  # steps, while rounding is delayed: finding extremes takes a pass over each activation
_CHECK_EVERY = 20  # steps after which losses are looked at on an accelerator: each look waits for it

__all__ = ["FastMode", "FineTune", "Teacher", "choose_mode", "distill", "soft_target_loss", "teaching_loss"]


class FineTune:
    """Trains one student; `advance` continues from where it stopped.

    In layers that were made sparse, entries that are exactly zero at the start stay zero; others train all entries.
    When the device's memory is too small for a step, this and all further ones are done in two halves whose gradients
    are added; when that is too much as well, the fine-tune fails.

    Args:
        student: trained in place, on the teacher's device.
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
        self.step, self.schedule = 0, CosineSchedule(settings.rungs[-1])
        self.mode: FastMode | None = None  # chosen at the first step, then kept: also on another machine
        self._seed, self._device, self._half = seed, teacher.device, is_half(student)
        self._called: Any = torch.compile(student) if settings.compile else student
        self._batches = stream_to(training_batches(self.task, self._seed, self._half), self._device)
        self._n_parts = 1  # of a batch, whose gradients are added
        self._unchecked: list[Tensor] = []
        if settings.learn_scales:
            learn_scales_(student)
        self._features = self._feature_loss() if settings.feature_weight else None
        adapters = [] if self._features is None else self._features.adapters.parameters()
        self._optimizer = make_optimizer(student, self.settings, adapters)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=False)
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
                self._delay_rounding()
                self._train_one(next(self._batches))
            self.step += 1
        self._check_losses()
        before = {name: tensor.detach().clone() for name, tensor in vectors.items()}
        snap_biases_(self.student.eval())
        self._trained = {name: value for name, value in before.items() if not torch.equal(value, vectors[name])}

    def state_dict(self) -> dict[str, Any]:
        """Student, its biases as trained, optimizer, position, mode, random state (dropout); tensors and numbers."""
        return {
            "step": self.step,
            "schedule": self.schedule.state_dict(),
            "fast": None if self.mode is None else [self.mode.bfloat16, self.mode.channels_last],
            "device": self._device.type,
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
        self._optimizer.load_state_dict(_for_this_device(state["optimizer"], self._optimizer))
        self.step = int(state["step"])
        if "schedule" in state:  # an earlier version's schedule never changed its length
            self.schedule.load_state_dict(state["schedule"])
        known = state["fast"] is not None and state.get("device", CPU.type) == self._device.type
        self.mode = saved_mode(self._device, state["fast"]) if known else None
        batches = training_batches(self.task, self._seed, self._half)
        next(islice(batches, self.step, self.step), None)
        self._batches = stream_to(batches, self._device)
        torch.set_rng_state(state["random"])

    def _delay_rounding(self) -> None:
        """Training sees the rounding towards its end only; learned scales need it from the beginning."""
        if self.settings.learn_scales:
            return
        delayed = self.schedule.share(self.step) < self.settings.round_from
        delay_rounding_(self.student, delayed, not delayed or self.step % _OBSERVE_EVERY == 0)

    def _train_one(self, batch: Batch) -> None:
        inputs, _ = batch
        self.mode = self.mode or self.teacher.mode_for(inputs)
        if self.mode.needs_scaling and not self._scaler.is_enabled():
            self._scaler = torch.amp.GradScaler(self._device.type)
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self.schedule.factor(self.step)  # type: ignore[operator]
        if not self._fits(batch):
            self._halve(n_samples(inputs))
            if not self._fits(batch):
                raise self._too_large(n_samples(inputs))
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self.student.parameters(), _MAX_GRAD_NORM)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        with torch.no_grad():
            for weight, mask in self._masks:
                weight.mul_(mask)

    def _fits(self, batch: Batch) -> bool:
        """Whether the gradients could be computed within the device's memory."""
        try:
            self._add_gradients(batch)
        except torch.OutOfMemoryError:  # what the failed pass holds is freed with the error, after this block
            return False
        return True

    def _add_gradients(self, batch: Batch) -> None:
        """The gradients of the batch's loss, from its parts one after the other."""
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for part, share in parts_of(batch, batch[0], self._n_parts):
            loss = self._loss_of(part)
            self._scaler.scale(loss * share if self._n_parts > 1 else loss).backward()
            total += share * loss.detach().reshape(())
        self._unchecked.append(total)
        if self._device.type == "cpu" or len(self._unchecked) >= _CHECK_EVERY:
            self._check_losses()

    def _loss_of(self, batch: Batch) -> Tensor:
        inputs, mode = batch[0], self.mode
        assert mode is not None, "`_train_one` has chosen it"
        if self._features is None:
            is_whole = self._n_parts == 1  # then the teacher's outputs are computed once and kept
            soft = self.teacher.outputs(self.step, inputs, mode) if is_whole else self.teacher.run(inputs, mode)
            return self._loss(self._outputs(inputs, mode), soft, batch)
        with self._features.watch() as (ours, theirs):  # features need a forward pass of the teacher each time
            soft = self.teacher.run(inputs, mode)
            loss = self._loss(self._outputs(inputs, mode), soft, batch)
        return loss + self.settings.feature_weight * self._features(ours, theirs)

    def _check_losses(self) -> None:
        losses, self._unchecked = self._unchecked, []
        if losses and not bool(torch.isfinite(torch.stack(losses)).all()):
            bad = next(float(loss) for loss in losses if not math.isfinite(float(loss)))
            raise CompressionError(
                f"the fine-tune's loss must be finite, but is {bad} after {self.step} steps; "
                f"lower learning_rate ({self.settings.learning_rate})"
            )

    def _halve(self, size: int) -> None:
        """From now on batches are trained in halves.

        Raises:
            CompressionError: they already are, or there is nothing to halve.
        """
        if self._n_parts > 1 or size < 2:
            raise self._too_large(size)
        self._n_parts = 2
        self._optimizer.zero_grad(set_to_none=True)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _too_large(self, size: int) -> CompressionError:
        return CompressionError(
            f"a training step must fit into the memory of {self._device}, but a batch of {size} does not, "
            f"{'even in two halves' if self._n_parts > 1 else 'and cannot be halved'}; give smaller training batches, "
            "fewer trials per GPU (gpus_per_trial), or a device with more memory"
        )

    def _outputs(self, inputs: Inputs, mode: FastMode) -> Any:
        with mode():
            return as_float32(call_model(self._called, mode.layout(inputs)))

    def _feature_loss(self) -> FeatureLoss:
        inputs, _ = on_device(next(training_batches(self.task, self._seed, self._half)), self._device)
        return FeatureLoss(self.student, self.teacher.model, self.settings.feature_layers, inputs)

    def _loss(self, outputs: Any, soft: Any, batch: Batch) -> Tensor:
        named = self.settings.teacher_loss or getattr(self.task, "teacher_loss", None)
        alpha, temperature = (0.0 if named == "none" else self.settings.alpha), self.settings.temperature
        loss = torch.zeros((), device=self._device)
        if alpha > 0:
            taught = getattr(self.task, "taught", _main)
            pairs = list(zip(taught(outputs), taught(soft), strict=True))
            for ours, theirs in pairs:
                share = teaching_loss(ours, theirs, temperature, batch[1], named, batch[0])
                loss = loss + alpha / len(pairs) * share
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


def _main(outputs: Any) -> tuple[Tensor, ...]:
    return (main_output(outputs),)


def teaching_loss(
    outputs: Tensor, soft: Tensor, temperature: float, targets: Any, named: str | None = None, inputs: Any = None
) -> Tensor:
    """How far the student is from its teacher: soft targets where there are classes, else the mean squared difference.

    The latter serves regression, and scores of labels that do not exclude each other (Ba and Caruana 2014). Positions
    that are padding, or whose target is -100, are left out; see `autocompress.batches.counted`.

    Args:
        outputs: of the student.
        soft: of the teacher, same shape.
        temperature: at least 1.
        targets: of the batch; they say where the classes are, see `autocompress.metrics.class_dim`.
        named: "kl", "mse" or "cosine" (1 - cosine similarity along the last dimension) in place of the rule above.
        inputs: of the batch; they may hold a mask of its padding.
    """
    if named == "cosine":
        return _mean(1 - F.cosine_similarity(outputs, soft, dim=-1), counted(outputs.shape[:-1], inputs, targets))
    dim = class_dim(outputs, targets)
    if dim is None and named == "kl":
        dim = -1
    if dim is None or named == "mse":
        squares = F.mse_loss(outputs, soft, reduction="none")
        kept = counted(outputs.shape[:-1], inputs, targets)
        return squares.mean() if kept is None else _mean(squares.mean(-1), kept)
    ours, theirs = outputs.movedim(dim, -1), soft.movedim(dim, -1)
    return soft_target_loss(ours, theirs, temperature, counted(ours.shape[:-1], inputs, targets))


def soft_target_loss(outputs: Tensor, soft: Tensor, temperature: float, kept: Tensor | None = None) -> Tensor:
    """T^2 KL(softmax(soft / T) || softmax(outputs / T)) over the last dimension, averaged over everything else.

    From Hinton, Vinyals and Dean (2015).

    Args:
        outputs: logits of the student, shape (..., n_classes).
        soft: logits of the teacher, same shape.
        temperature: at least 1.
        kept: True for the rows that count, shape (...); None for all.
    """
    student = F.log_softmax(outputs / temperature, dim=-1)
    teacher = F.log_softmax(soft / temperature, dim=-1)
    if kept is None:
        divergence = F.kl_div(student.flatten(0, -2), teacher.flatten(0, -2), reduction="batchmean", log_target=True)
    else:
        divergence = _mean(F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1), kept)
    return temperature**2 * divergence


def _mean(values: Tensor, kept: Tensor | None) -> Tensor:
    """The mean of the values that are kept, without asking the device how many these are."""
    return values.mean() if kept is None else (values * kept).sum() / kept.sum().clamp(min=1)


def distill(
    student: nn.Module,
    teacher: nn.Module,
    task: Task,
    steps: int = 200,
    *,
    settings: DistillSettings | None = None,
    seed: int = 0,
) -> nn.Module:
    """Fine-tunes `student` in place under `teacher` for `steps` steps, on the student's device.

    Returns:
        The student in evaluation mode.

    Raises:
        InputError: `steps` is no positive whole number.
        CompressionError: the loss is not finite.
    """
    require_count("steps", steps)
    base = settings or DistillSettings()
    values = {**base.__dict__, "rungs": (0, steps)}
    copied = copy.deepcopy(teacher).to(device_of(student))
    FineTune(student, Teacher(copied), task, DistillSettings(**values), seed).advance(steps)
    return student


def _for_this_device(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state, perhaps of another device, with the kernels that are used here."""
    groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
    return {**state, "param_groups": [{**group, "fused": own.get("fused")} for group, own in groups]}


def _zero_masks(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Each trained weight of a layer that was made sparse, and a mask that is False where it is zero."""
    return [(weight, weight.detach() != 0) for weight in sparse_weights(model) if weight.requires_grad]


def _group_lasso(student: nn.Module, task: Task) -> GroupLasso:
    """Over the channel groups that the student itself has; taken as the rules say, since nothing is removed."""
    return GroupLasso(student, inspect_model(model_on(student, CPU), examples_of(task), verify=False))


def training_batches(task: Task, seed: int = 0, half: bool = False) -> Iterator[Batch]:
    """Batches without end, those of the epochs of seed, seed + 1, ...

    Args:
        task: gives an epoch for each seed.
        seed: of the first epoch.
        half: leave inputs in half precision as they are.

    Raises:
        InputError: an epoch is empty.
    """
    while True:
        n_batches = 0
        for inputs, targets in task.train_batches(seed):
            n_batches += 1
            yield (inputs if half else full_precision(inputs)), targets
        if n_batches == 0:
            raise InputError("train_batches must give at least one batch, but gave none")
        seed += 1
