"""Repairs a pruned model without gradients: least-squares refits of layers, and new batch-norm statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autocompress.batches import restored
from autocompress.devices import tensors_in
from autocompress.errors import CompressionError
from autocompress.graph import Layer, ModelGraph
from autocompress.graph.shrink import group_slots, module_at, new_orders
from autocompress.task import Inputs, call_model

RIDGE = 1e-3
_MAX_SAMPLES = 256
_ROWS_PER_UNKNOWN = 4
_MIN_ROWS = 4096
_CHUNK = 16  # samples whose patches are in memory at once


def reconstruct_(
    student: nn.Module,
    model: nn.Module,
    graph: ModelGraph,
    removed: Mapping[str, Sequence[int]],
    calibration: Sequence[Inputs],
    ridge: float = RIDGE,
) -> None:
    """Least-squares refit of every linear and plain convolution that lost inputs (He et al. 2017, arXiv:1707.06168).

    For inputs X that the layer gets in the student and outputs Y that it gave in the model, kept channels only, the
    change D of weight and bias minimises |X (W + D) - Y|^2 + r |D|^2, with r = ridge × mean diagonal of X'X, in
    float64. Layers are refitted in the order in which they run, in one pass of the student: each sees the inputs that
    follow from the refits before it. Of large outputs a fixed random choice of positions is used.

    Args:
        student: pruned, in evaluation mode; weights change in place.
        model: the uncompressed model.
        graph: of the model.
        removed: channel group -> indices that were removed.
        calibration: batches of inputs; the first 256 samples count. without any the student is not changed.
        ridge: how strongly the pruned weight is held to; relative to the inputs' power.

    Raises:
        CompressionError: activations are not finite.
    """
    fits = [
        _Fit(layer, kept, reader)
        for layer in graph.layers
        for kept, lost in [_slots(layer, graph, removed)]
        for reader in [module_at(student, layer.path)]
        if lost and layer.groups == 1 and not layer.own_forward and isinstance(reader, nn.Linear | nn.Conv2d)
    ]
    if not fits or not calibration:
        return
    inputs = _joined(calibration)
    targets: dict[str, Tensor] = {}
    with torch.no_grad(), ExitStack() as hooks:

        def keep(fit: _Fit) -> None:
            def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
                targets[fit.layer.path] = fit.outputs(output)

            hooks.callback(model.get_submodule(fit.layer.path).register_forward_hook(hook).remove)

        def refit(fit: _Fit) -> None:
            def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
                fit.solve_(args[0], targets.pop(fit.layer.path), ridge)

            hooks.callback(fit.reader.register_forward_pre_hook(hook).remove)

        for fit in fits:
            keep(fit)
            refit(fit)
        was_training = model.training
        model.eval()
        call_model(model, inputs)
        model.train(was_training)
        call_model(student, inputs)


@dataclass(frozen=True)
class _Fit:
    """One layer to refit.

    Attributes:
        layer: of the uncompressed model.
        kept: its output channels that the student still has.
        reader: the student's layer.
    """

    layer: Layer
    kept: Tensor
    reader: nn.Linear | nn.Conv2d

    def outputs(self, output: Tensor) -> Tensor:
        """Kept channels at the chosen positions, float64, (n_rows, n_kept)."""
        by_position = output.flatten(2).mT if isinstance(self.reader, nn.Conv2d) else _flat(output)
        places = self._places(*by_position.shape[:2]).to(output.device)
        chosen = by_position.gather(1, places[:, :, None].expand(-1, -1, by_position.shape[2]))
        return chosen.flatten(0, 1)[:, self.kept.to(output.device)].double()

    def solve_(self, x: Tensor, target: Tensor, ridge: float) -> None:
        """Sets weight and bias from the layer's input and the wanted outputs."""
        rows = self._rows(x).double()
        weight = self.reader.weight.flatten(1).double()
        missing = target - rows @ weight.mT
        if self.reader.bias is not None:
            missing -= self.reader.bias.double()
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        change = ridge_solution(rows, missing, ridge, self.layer.path).mT
        if self.reader.bias is not None:
            self.reader.bias += change[:, -1].to(self.reader.bias.dtype)
            change = change[:, :-1]
        self.reader.weight.copy_((weight + change).reshape(self.reader.weight.shape))

    def _rows(self, x: Tensor) -> Tensor:
        """What each chosen output position is computed from, (n_rows, n_inputs)."""
        if isinstance(self.reader, nn.Linear):
            by_position = _flat(x)
            places = self._places(*by_position.shape[:2]).to(x.device)
            return by_position.gather(1, places[:, :, None].expand(-1, -1, x.shape[-1])).flatten(0, 1)
        return torch.cat([self._patches(self.reader, part, start, len(x)) for start, part in _chunks(x)])

    def _patches(self, conv: nn.Conv2d, x: Tensor, start: int, n_samples: int) -> Tensor:
        """Patches of some samples, (n_rows, in_channels × kernel), in the order of the flattened weight."""
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        padded = F.pad(x, conv._reversed_padding_repeated_twice, mode)
        patches = F.unfold(padded, _pair(conv.kernel_size), _pair(conv.dilation), 0, _pair(conv.stride))
        places = self._places(n_samples, patches.shape[2])[start : start + len(x)].to(x.device)
        return patches.gather(2, places[:, None].expand(-1, patches.shape[1], -1)).mT.flatten(0, 1)

    def _places(self, n_samples: int, n_positions: int) -> Tensor:
        """Positions of each sample that count, (n_samples, n_chosen): all of a small output, else random ones."""
        wanted = max(_MIN_ROWS, _ROWS_PER_UNKNOWN * self.reader.weight[0].numel())
        n_chosen = -(-wanted // n_samples)
        if n_chosen >= n_positions:
            return torch.arange(n_positions).expand(n_samples, -1)
        return torch.randint(n_positions, (n_samples, n_chosen), generator=torch.Generator().manual_seed(0))


def ridge_solution(rows: Tensor, target: Tensor, ridge: float, name: str) -> Tensor:
    """The D that minimises |rows D - target|^2 + r |D|^2, with r = ridge × mean diagonal of rows' rows.

    Args:
        rows: float64, shape (n_rows, n_unknowns).
        target: float64, shape (n_rows, n_outputs).
        ridge: relative, above 0.
        name: of the layer, for the message.

    Raises:
        CompressionError: a value is not finite.
    """
    gram = rows.mT @ rows
    gram.diagonal().add_(max(ridge * gram.diagonal().mean().item(), 1e-30))
    factor, failed = torch.linalg.cholesky_ex(gram)
    solution: Tensor = torch.cholesky_solve(rows.mT @ target, factor)
    if bool(failed) or not bool(torch.isfinite(solution).all()):
        raise CompressionError(
            f"layer {name!r} cannot be refitted: its activations on the calibration batches must be finite; "
            "check the batches and the model's weights, or set `reconstruct=False`"
        )
    return solution


def _slots(layer: Layer, graph: ModelGraph, removed: Mapping[str, Sequence[int]]) -> tuple[Tensor, bool]:
    """Output channels of the layer that are kept, and whether it lost inputs."""
    chosen = [(graph.group(name), channels) for name, channels in removed.items()]
    weight = f"{layer.path}.weight"
    gone, orders = group_slots(chosen), new_orders(chosen)
    stay = [i for i in range(layer.weight_shape[0]) if i not in gone.get((weight, 0), ())]
    return torch.tensor(orders.get((weight, 0), stay)), bool(gone.get((weight, 1)))


def _joined(batches: Sequence[Inputs]) -> Inputs:
    """The first samples as one batch; a batch of other shapes than the first is passed over."""
    tensors = [tensors_in(batch) for batch in batches]
    shapes = [[value.shape[1:] for value in batch] for batch in tensors]
    alike = [batch for batch, shape in zip(tensors, shapes, strict=True) if shape == shapes[0]]
    joined: Inputs = restored(batches[0], [torch.cat(values)[:_MAX_SAMPLES] for values in zip(*alike, strict=True)])
    return joined


def _flat(values: Tensor) -> Tensor:
    """(n_samples, ..., n_features) -> (n_samples, n_positions, n_features)."""
    return values.reshape(len(values), -1, values.shape[-1])


def _chunks(x: Tensor) -> list[tuple[int, Tensor]]:
    return [(start, x[start : start + _CHUNK]) for start in range(0, len(x), _CHUNK)]


def _pair(size: tuple[int, ...]) -> tuple[int, int]:
    return size[0], size[1]


def reestimate_norms_(model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Replaces running means and variances by plain averages over `batches`, in place (EagleEye, arXiv:2007.02491).

    Only batch norms see training mode, so dropout stays off. A model without batch norm, or no batches, is left as is.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    was_training = model.training
    momenta = [norm.momentum for norm in norms]
    model.eval()
    with torch.no_grad():
        for i, inputs in enumerate(batches):
            if i == 0:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # cumulative average
                    norm.train()
            call_model(model, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)
