"""Sets activation ranges from batches, corrects the shift that rounded weights leave behind, and frees the scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compression.quantize.activations import ActivationQuantizer, BFloat16Activations, DynamicQuantizer
from autocompress.compression.quantize.layers import QuantizedLayer
from autocompress.compression.quantize.ranges import RANGES
from autocompress.compression.quantize.weights import PerChannelInt8Quantizer, WeightQuantizer
from autocompress.errors import CompressionError, InputError
from autocompress.task import Inputs, call_model

_DELAYED_BITS = 8


def calibrate_(model: nn.Module, batches: Iterable[Inputs], rule: str = "minmax") -> None:
    """Sets every activation range of `model` from what is seen on `batches`, in evaluation mode, in place.

    Args:
        model: with rounded layers.
        batches: inputs.
        rule: a name in `RANGES`.

    Raises:
        CompressionError: `batches` is empty, or activations are not finite.
        InputError: no such rule.
    """
    if rule not in RANGES:
        raise InputError(f"ranges must be one of {', '.join(RANGES)}, but got {rule!r}")
    quantizers = [module for module in model.modules() if isinstance(module, ActivationQuantizer)]
    if not quantizers:
        return
    was_training = model.training
    model.eval()
    n_batches = 0
    with torch.no_grad(), _calibrating(quantizers):
        for inputs in batches:
            n_batches += 1
            call_model(model, inputs)
    model.train(was_training)
    if n_batches == 0:
        raise CompressionError(
            "8-bit layers need at least one calibration batch, but got none; pass `calibration=batches`"
        )
    for quantizer in quantizers:
        quantizer.compute_qparams(rule)


def correct_bias_(student: nn.Module, before: nn.Module, norms: dict[str, str], batches: Sequence[Inputs]) -> None:
    """Moves each rounded layer's bias so that its mean output by channel is what it was; in place.

    One forward pass, layer after layer: each correction acts on what the later layers see (Nagel et al. 2019,
    arXiv:1906.04721, section 4.2, with measured means). A layer without a bias is corrected in the running mean of its
    batch norm; without a norm it is left.

    Args:
        student: calibrated.
        before: the same model before rounding.
        norms: layer path -> path of its batch norm.
        batches: of inputs; the first one is used.
    """
    layers = {path: module for path, module in student.named_modules() if isinstance(module, QuantizedLayer)}
    targets = {path: _shifted(student, module, norms.get(path)) for path, module in layers.items()}
    means: dict[str, Tensor] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            means[path] = _mean(module, output)

        return hook

    def correct(path: str, tensor: Tensor, sign: int) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            shift = means[path] - _mean(module, output)
            tensor.add_(sign * shift)
            # what a norm takes off later is not added here
            return output if sign < 0 else output + _along_channels(module, shift, output.ndim)

        return hook

    corrected = {path: target for path, target in targets.items() if target is not None}
    with torch.no_grad():
        with _hooks(before, {path: note(path) for path in corrected}):
            call_model(before, batches[0])
        with _hooks(student, {path: correct(path, *target) for path, target in corrected.items()}):
            call_model(student, batches[0])


def learn_scales_(model: nn.Module) -> None:
    """Makes the scales of 8-bit layers parameters, so that training learns them (LSQ); in place."""
    for module in model.modules():
        if isinstance(module, ActivationQuantizer | PerChannelInt8Quantizer) and not isinstance(
            module.scale, nn.Parameter
        ):
            module.learn_()


def delay_rounding_(model: nn.Module, delayed: bool, observes: bool = True) -> None:
    """Lets training see values themselves in layers of 8 and more bits, or no longer; in place.

    Rounding by fewer bits moves a weight so far that training has to see it. In evaluation all is rounded as ever.

    Args:
        model: with rounded layers or without.
        delayed: whether training leaves the rounding out.
        observes: whether activation ranges follow what training shows.
    """
    for module in model.modules():
        if isinstance(module, ActivationQuantizer):
            module.through, module.observes = delayed, observes
        elif isinstance(module, BFloat16Activations | DynamicQuantizer):
            module.through = delayed
        elif isinstance(module, WeightQuantizer):
            module.through = delayed and module.bits >= _DELAYED_BITS


def is_quantized(model: nn.Module) -> bool:
    """True when any layer of `model` is rounded."""
    return any(isinstance(module, QuantizedLayer) for module in model.modules())


@contextmanager
def _calibrating(quantizers: list[ActivationQuantizer]) -> Iterator[None]:
    for quantizer in quantizers:
        quantizer.calibrating = True
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.calibrating = False


def _shifted(student: nn.Module, module: QuantizedLayer, norm: str | None) -> tuple[Tensor, int] | None:
    """The tensor that a shift goes into, and whether it is added or taken off."""
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        return bias, 1
    return (student.get_submodule(norm).running_mean, -1) if norm is not None else None  # type: ignore[return-value]


def _mean(module: nn.Module, output: Tensor) -> Tensor:
    channels = output.ndim - 1 if isinstance(module, nn.Linear) else 1
    return output.float().mean([dim for dim in range(output.ndim) if dim != channels])


def _along_channels(module: nn.Module, value: Tensor, n_dims: int) -> Tensor:
    return value if isinstance(module, nn.Linear) else value.reshape(-1, *[1] * (n_dims - 2))


@contextmanager
def _hooks(model: nn.Module, hooks: dict[str, Callable[..., Any]]) -> Iterator[None]:
    handles = [model.get_submodule(path).register_forward_hook(hook) for path, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
