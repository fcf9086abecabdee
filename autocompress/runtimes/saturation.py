"""Finds whether a runtime's 8-bit kernels saturate, by two tiny files whose exact results are known.

x86 CPUs without VNNI multiply uint8 by int8 with `vpmaddubsw`, which adds two products in 16 bits and saturates: with
inputs of 255 from weights of 65 on. Kernels differ by layer type, so a product and a convolution are tried.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.compression.quantize import calibrate_, quantize_
from autocompress.graph import inspect_model
from autocompress.locked_temp_dir import LockedTempDir
from autocompress.runtimes.capabilities import is_executed
from autocompress.runtimes.registry import Runtime, Session
from autocompress.space.candidate import INT8_BITS

_N_CHANNELS = 32
_TOLERANCE = 0.02  # rounding costs under 1/255; saturation of every pair, half of the result


def saturates(runtime: Runtime, load: Callable[[Path], Session] | None = None) -> bool:
    """Whether 8-bit layers with full-range weights give wrong results.

    Args:
        runtime: whose files are tried.
        load: loads a file on the machine that is asked about; None asks about this one, once per process.

    Raises:
        ExportError: the runtime refuses the file.
    """
    return _saturates_here(type(runtime)) if load is None else bool(saturating_kinds(runtime, load))


def saturating_kinds(runtime: Runtime, load: Callable[[Path], Session]) -> tuple[str, ...]:
    """The kinds of layers, of those that the runtime executes at 8 bits, whose kernels saturate."""
    executed = [kind for kind in _PROBES if is_executed(runtime.capabilities(), INT8_BITS, kind)]
    found = []
    for kind in executed:
        student, x = _extreme(*_PROBES[kind]())
        with LockedTempDir() as scratch, torch.no_grad():
            given = load(runtime.export(student, (x,), scratch.path)).predict((x,))
            exact = student(x)
        if float((given - exact).abs().max()) > _TOLERANCE * float(exact.abs().max()):
            found.append(kind)
    return tuple(found)


@functools.cache
def _saturates_here(kind: Callable[[], Runtime]) -> bool:
    runtime = kind()
    return bool(saturating_kinds(runtime, runtime.load))


_PROBES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (nn.Linear(_N_CHANNELS, _N_CHANNELS, bias=False), torch.ones(4, _N_CHANNELS)),
    "conv2d": lambda: (nn.Conv2d(_N_CHANNELS, _N_CHANNELS, 3, bias=False), torch.ones(1, _N_CHANNELS, 8, 8)),
}


def _extreme(layer: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """The layer in 8 bits with each weight at the highest code, and inputs at the highest level."""
    model = nn.Sequential(layer).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1.0)
    layers = inspect_model(model, (x,)).layers
    quantize_(model, layers, {"0": INT8_BITS})
    calibrate_(model, [(x,)])
    return model, x
