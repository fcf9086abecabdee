"""Where tensors are computed: names a device, and moves models and batches of any nesting to it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from autocompress.errors import InputError

T = TypeVar("T")
_BYTES_PER_MIB = 2**20

CPU = torch.device("cpu")
AUTO = "auto"
ACCELERATORS = ("cuda", "xpu", "mps")
"""What "auto" takes, in this order."""


def find_device(name: str) -> torch.device:
    """The device of that name in this process; "auto" is the first accelerator that it sees, else the CPU.

    Raises:
        InputError: no such device here; lists what there is.
    """
    if name == AUTO:
        return torch.device(next((kind for kind in ACCELERATORS if _count(kind)), "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device must be auto, cpu, cuda, cuda:1, mps or the like, but got {name!r}") from error
    if device.type != "cpu" and (device.index or 0) >= _count(device.type):
        raise InputError(
            f"device {name!r} must be there, but this process sees {', '.join(['cpu', *accelerators()])} (torch "
            f"{torch.__version__}); name one of them, or auto; on a cluster, give trials their GPU by gpus_per_trial"
        )
    return device


def accelerators() -> list[str]:
    """Every accelerator that this process sees, such as "cuda:0"."""
    return [f"{kind}:{index}" for kind in ACCELERATORS for index in range(_count(kind))]


def _count(kind: str) -> int:
    """How many devices of that kind this process sees."""
    if kind in ("cpu", "meta"):
        return int(kind == "cpu")
    try:
        module = torch.get_device_module(kind)
    except (RuntimeError, AttributeError):
        return 0
    return int(module.device_count()) if module.is_available() else 0


def without_index(name: str) -> str:
    """The name for a process that sees only the devices that it was given: "cuda:1" is "cuda" there."""
    return name.partition(":")[0]


def has_float64(device: torch.device) -> bool:
    """Whether float64 is computed there; where not, closed forms are computed on the CPU."""
    return device.type != "mps"


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU for a model without any."""
    tensors = (tensor for source in (model.parameters(), model.buffers()) for tensor in source)
    return next((tensor.device for tensor in tensors), CPU)


def model_on(model: nn.Module, device: torch.device) -> nn.Module:
    """The model itself where it is on the device already, else a copy there."""
    here = all(_same(tensor.device, device) for tensor in (*model.parameters(), *model.buffers()))
    return model if here else copy.deepcopy(model).to(device)


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """The value with every tensor in it replaced by what the function gives; anything else stays.

    Goes through tuples, named tuples, lists, mappings, packed sequences and dataclasses, such as Hugging Face's
    `ModelOutput`.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        items = {key: map_tensors(function, item) for key, item in value.items()}
        return items if type(value) is dict or not dataclasses.is_dataclass(value) else type(value)(**items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: map_tensors(function, getattr(value, name)) for name in names})
    if isinstance(value, PackedSequence):  # its batch sizes are always on the CPU
        moved = (map_tensors(function, item) for item in (value.sorted_indices, value.unsorted_indices))
        return PackedSequence(function(value.data), value.batch_sizes, *moved)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, item) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(function, item) for item in value)
    return value


def tensors_in(value: object) -> list[Tensor]:
    """Every tensor in a nested value, in order."""
    found: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(collect, value)
    return found


def on_device(value: T, device: torch.device, non_blocking: bool = False) -> T:
    """A nested value with its tensors on the device; the tensors themselves where they are there already."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=non_blocking)

    moved: T = map_tensors(move, value)
    return moved


def full_precision(value: T) -> T:
    """A nested value with float16 and bfloat16 tensors in float32, in which everything is compressed and trained."""

    def widen(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

    widened: T = map_tensors(widen, value)
    return widened


def is_half(model: nn.Module) -> bool:
    """Whether the model has half-precision parameters, so that its inputs must not be widened."""
    return any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters())


def widened(model: nn.Module) -> nn.Module:
    """The model with half-precision parameters and buffers in float32, in place."""
    halves = (torch.float16, torch.bfloat16)
    if any(tensor.dtype in halves for tensor in (*model.parameters(), *model.buffers())):
        model._apply(lambda tensor: tensor.float() if tensor.dtype in halves else tensor)
    return model


def device_in(value: object) -> torch.device:
    """The device of the first tensor in a nested value; the CPU where there is none."""
    return next((tensor.device for tensor in tensors_in(value)), CPU)


def stream_to(batches: Iterable[T], device: torch.device) -> Iterator[T]:
    """The batches on the device; on CUDA each is copied from pinned memory while its predecessor is computed on."""
    if device.type != "cuda":
        for batch in batches:
            yield on_device(batch, device)
        return
    copies = torch.cuda.Stream(device)
    ahead: tuple[T, torch.cuda.Event] | None = None
    for batch in batches:
        following = _started(batch, device, copies)
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = following
    if ahead is not None:
        yield _arrived(*ahead)


def _started(batch: T, device: torch.device, copies: torch.cuda.Stream) -> tuple[T, torch.cuda.Event]:
    def pinned(tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if tensor.device.type == "cpu" else tensor

    with torch.cuda.stream(copies):
        moved = on_device(map_tensors(pinned, batch), device, non_blocking=True)
        return moved, copies.record_event()


def _arrived(batch: T, copied: torch.cuda.Event) -> T:
    """The batch, once the stream that computes waits for its copy; its memory is not reused before that is done."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)
    for tensor in tensors_in(batch):
        tensor.record_stream(stream)
    return batch


class PeakMemory:
    """The most memory that was in use since it was made: of a GPU by torch's allocator, else of this process.

    Args:
        device: whose memory is watched.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            self._is_known = _forget_peak()

    @property
    def mib(self) -> float | None:
        """MiB; None where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / _BYTES_PER_MIB
        return _peak_of_process() if self._is_known else None


def _forget_peak() -> bool:
    """Lets Linux count this process's peak anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak_of_process() -> float | None:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return None


def _same(one: torch.device, other: torch.device) -> bool:
    """Whether both are one device; without an index the current one is meant."""
    return one.type == other.type and (one.index or 0) == (other.index or 0)
