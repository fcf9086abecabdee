"""A second device without a GPU: "second" tensors hold real values and refuse to mix with CPU tensors, as CUDA's do.

It is torch's Python backend for PrivateUse1 (`torch.utils.backend_registration`): a wrapper around a CPU tensor with
the device "second:0". Each operation unwraps its arguments, checks that all of them are on the device, and runs on the
CPU; so a forgotten transfer fails, and everything else gives the CPU's numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "second"
CUDA_TAKES_CPU_INDICES = {"aten.index.Tensor", "aten.index_put_.default", "aten.index_put.default"}
MOVES = {"aten.copy_.default", "aten._to_copy.default"}


class SecondTensor(Tensor):
    """A tensor of the second device; its values are in `_value`, on the CPU."""

    _value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> SecondTensor:
        made = Tensor._make_wrapper_subclass(
            cls, value.shape, value.stride(), value.storage_offset(), dtype=value.dtype, device=f"{NAME}:0"
        )
        made._value = value
        return made  # type: ignore[no-any-return]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"second({self._value!r})"

    def tolist(self) -> Any:
        return self._value.tolist()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["_value"], None

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {}, on_device=True)


def _run(op: Any, args: Any, kwargs: dict[str, Any], on_device: bool) -> Any:
    """Runs an operation on the values; `on_device` says where its result is, unless the arguments name a device."""
    if str(op) not in MOVES:
        _refuse_mixing(op, args, kwargs)
    device = kwargs.get("device")
    if device is not None:
        on_device = torch.device(device).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    wrapped = {id(item._value): item for item in tree_leaves((args, kwargs)) if isinstance(item, SecondTensor)}
    plain = {id(item): item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)}
    run = CELLS.get(str(op), op)
    result = run(*tree_map(_value_of, args), **tree_map(_value_of, kwargs))

    if torch.Tag.inplace_view in op.tags:  # the wrapper's own sizes change too
        with no_dispatch():
            op(*args, **kwargs)

    def wrap(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        if id(item) in wrapped or id(item) in plain:  # changed in place
            return wrapped.get(id(item), item)
        return SecondTensor(item) if on_device else item

    return tree_map(wrap, result)


def _value_of(item: Any) -> Any:
    return item._value if isinstance(item, SecondTensor) else item


def _refuse_mixing(op: Any, args: Any, kwargs: dict[str, Any]) -> None:
    tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
    if str(op) in CUDA_TAKES_CPU_INDICES and isinstance(tensors[0], SecondTensor):
        return
    strangers = [item for item in tensors if not isinstance(item, SecondTensor) and item.dim() > 0]
    if strangers and len(strangers) < len(tensors):
        shapes = [(str(item.device), tuple(item.shape)) for item in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device, but {op} got {shapes}")


def _lstm_cell(given: Tensor, hidden: Tensor, cell: Tensor, *biases: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    gates = sum((bias for bias in biases if bias is not None), given + hidden)
    i, f, g, o = gates.chunk(4, 1)
    kept = torch.cat([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()], 1)
    i, f, g, o = kept.chunk(4, 1)
    new = f * cell + i * g
    return o * new.tanh(), new, kept


def _lstm_cell_backward(
    grad_hidden: Tensor | None, grad_cell: Tensor | None, cell: Tensor, new: Tensor, kept: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    i, f, g, o = kept.chunk(4, 1)
    hidden = torch.zeros_like(new) if grad_hidden is None else grad_hidden
    total = hidden * o * (1 - new.tanh() ** 2) + (0 if grad_cell is None else grad_cell)
    by_gate = [
        total * g * i * (1 - i),
        total * cell * f * (1 - f),
        total * i * (1 - g**2),
        hidden * new.tanh() * o * (1 - o),
    ]
    gates = torch.cat(by_gate, 1)
    return gates, total * f, gates.sum(0) if has_bias else None


def _gru_cell(given: Tensor, hidden: Tensor, state: Tensor, *biases: Tensor | None) -> tuple[Tensor, Tensor]:
    ours, theirs, *_ = (*biases, None, None)
    given = given if ours is None else given + ours
    hidden = hidden if theirs is None else hidden + theirs
    (ir, iz, new), (hr, hz, hn) = given.chunk(3, 1), hidden.chunk(3, 1)
    r, z = (ir + hr).sigmoid(), (iz + hz).sigmoid()
    n = (new + r * hn).tanh()
    return n + z * (state - n), torch.cat([r, z, n, state, hn], 1)


def _gru_cell_backward(grad: Tensor, kept: Tensor, has_bias: bool) -> tuple[Tensor | None, ...]:
    r, z, n, state, hn = kept.chunk(5, 1)
    to_n = grad * (1 - z) * (1 - n**2)
    to_r, to_z = to_n * hn * r * (1 - r), grad * (state - n) * z * (1 - z)
    given, hidden = torch.cat([to_r, to_z, to_n], 1), torch.cat([to_r, to_z, to_n * r], 1)
    return given, hidden, grad * z, *((given.sum(0), hidden.sum(0)) if has_bias else (None, None))


CELLS: dict[str, Callable[..., Any]] = {
    "aten._thnn_fused_lstm_cell.default": _lstm_cell,
    "aten._thnn_fused_lstm_cell_backward_impl.default": _lstm_cell_backward,
    "aten._thnn_fused_gru_cell.default": _gru_cell,
    "aten._thnn_fused_gru_cell_backward.default": _gru_cell_backward,
}
"""Recurrent cells that devices other than the CPU have as one operation."""


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def _lazy_init(self) -> None:
        pass


_fallbacks: list[torch.library.Library] = []


def register() -> None:
    """Registers the device in this process, once."""
    if _fallbacks:
        return
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("_", "IMPL")
    factory: Callable[..., Any] = lambda op, *args, **kwargs: _run(op, args, kwargs, on_device=True)  # noqa: E731
    library.fallback(factory, "PrivateUse1")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # autocast changes no type
    _fallbacks.append(library)
    plain = torch.tensor  # it copies its data past all Python code

    def tensor(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        made = plain(data, device=None if _is_second(device) else device, **kwargs)
        return made.to(device) if _is_second(device) else made

    torch.tensor = tensor


def _is_second(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME
