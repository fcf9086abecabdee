"""Compares features of student and teacher, through a trained linear adapter where their widths differ.

FitNets (Romero et al. 2015, arXiv:1412.6550).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.compression.reconstruct import RIDGE, ridge_solution
from autocompress.errors import InputError
from autocompress.graph.shrink import module_at
from autocompress.task import Inputs, call_model

Features = Mapping[str, Tensor]
"""Layer path -> what the layer gave."""

_MAX_ROWS = 8192


class FeatureLoss:
    """Mean squared error of features relative to the teacher's power, averaged over layers.

    A layer that the student lost with a dropped branch is left out. Where the student's layer is narrower, a linear map
    from its channels to the teacher's stands between; it starts as the least-squares fit on the given inputs, and is
    trained with the student.

    Args:
        student: its layers are only looked at.
        teacher: likewise.
        paths: of layers that give one tensor.
        inputs: of a training batch.

    Attributes:
        adapters: one for each of `paths`, `nn.Identity` where the widths are equal.

    Raises:
        InputError: the features of a layer differ in more than their width.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, paths: Sequence[str], inputs: Inputs) -> None:
        self._student, self._teacher = student, teacher
        self._paths = [path for path in paths if module_at(student, path) is not None]
        was_training = student.training
        with torch.no_grad(), self.watch() as (ours, theirs):
            call_model(student.eval(), inputs)
            call_model(teacher, inputs)
        student.train(was_training)
        self._dims = {path: _width_dim(path, ours[path], theirs[path]) for path in self._paths}
        self.adapters = nn.ModuleList(
            nn.Identity() if dim is None else _fitted(ours[path], theirs[path], dim, path)
            for path, dim in self._dims.items()
        )

    @contextmanager
    def watch(self) -> Iterator[tuple[Features, Features]]:
        """Collects the features of the student's and of the teacher's forward pass inside."""
        ours: dict[str, Tensor] = {}
        theirs: dict[str, Tensor] = {}

        def keep(seen: dict[str, Tensor], path: str) -> Callable[[nn.Module, object, Tensor], None]:
            return lambda _module, _inputs, output: seen.__setitem__(path, output)

        pairs = ((self._student, ours), (self._teacher, theirs))
        handles = [
            model.get_submodule(path).register_forward_hook(keep(seen, path))
            for model, seen in pairs
            for path in self._paths
        ]
        try:
            yield ours, theirs
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self, ours: Features, theirs: Features) -> Tensor:
        """The loss, a scalar; zero where no layer is left."""
        losses = []
        for (path, dim), adapter in zip(self._dims.items(), self.adapters, strict=True):
            feature, made = theirs[path].float(), ours[path].float()
            if dim is not None:
                made = adapter(made.movedim(dim, -1)).movedim(-1, dim)
            losses.append(F.mse_loss(made, feature) / feature.pow(2).mean().clamp(min=1e-8))
        return torch.stack(losses).mean() if losses else torch.zeros(())


def _width_dim(path: str, ours: Tensor, theirs: Tensor) -> int | None:
    """The only dimension in which features differ, or None."""
    if ours.ndim == theirs.ndim:
        different = [dim for dim, sizes in enumerate(zip(ours.shape, theirs.shape, strict=True)) if len(set(sizes)) > 1]
        if len(different) < 2 and 0 not in different:
            return different[0] if different else None
    raise InputError(
        f"what feature layer {path!r} gives must have the teacher's shape but for one width, but got "
        f"{tuple(ours.shape)} and {tuple(theirs.shape)}; choose layers whose number of positions stays"
    )


def _fitted(ours: Tensor, theirs: Tensor, dim: int, path: str) -> nn.Linear:
    """The linear map from the student's width to the teacher's, by least squares over the positions."""
    rows, target = (value.detach().movedim(dim, -1).flatten(0, -2).double() for value in (ours, theirs))
    step = -(-len(rows) // _MAX_ROWS)
    rows, target = rows[::step], target[::step]
    solution = ridge_solution(torch.cat([rows, rows.new_ones(len(rows), 1)], 1), target, RIDGE, path)
    adapter = nn.Linear(rows.shape[1], target.shape[1], device=ours.device)
    with torch.no_grad():
        adapter.weight.copy_(solution[:-1].mT)
        adapter.bias.copy_(solution[-1])
    return adapter
