"""Second moments of every layer's inputs, collected in one pass over the calibration batches and cached."""

from __future__ import annotations

import copy
import hashlib
import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from autocompress.compression.low_rank.recurrent import level_inputs
from autocompress.errors import CompressionError
from autocompress.files import write_atomically
from autocompress.task import Inputs, call_model
from autocompress.tasks.data import cache_folder

Moments = Mapping[str, Tensor]
"""Layer path -> mean of x x' over all positions, float64 (groups, n, n); of an embedding the diagonal, (1, n).

What a convolution reads is a window, its entries in the order of the flattened weight. A recurrent layer has one entry
`path:i` for what level i reads, and a last one for what the module gives.
"""

_MIN_ROWS, _ROWS_PER_FEATURE = 8192, 16


def collect_moments(model: nn.Module, paths: Iterable[str], batches: Sequence[Inputs]) -> Moments:
    """One pass in evaluation mode, every batch once.

    A layer counts all positions of all batches up to max(8192, 16 × features) of them; beyond that, an equal number of
    each batch, spread evenly over its samples and positions. Sums are in float64.

    Args:
        model: not touched.
        paths: of linear, convolution, embedding and recurrent layers.
        batches: at least one. A layer that they never reach has no entry.

    Raises:
        CompressionError: an input is not finite.
    """
    model = copy.deepcopy(model).eval()
    sums: dict[str, _Sum] = {}
    latest = _Latest()
    with torch.no_grad(), ExitStack() as hooks:
        for path in paths:
            hooks.callback(_watch(model.get_submodule(path), path, sums, latest, len(batches)).remove)
        for inputs in batches:
            call_model(model, inputs)
    return {name: item.mean(name) for name, item in sums.items()}


class _Sum:
    """A running sum of x x' and of its rows."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.n_rows = 0

    def add(self, gram: Tensor, n_rows: int) -> None:
        self.total = gram.clone() if self.total is None else self.total.add_(gram)
        self.n_rows += n_rows

    def mean(self, name: str) -> Tensor:
        assert self.total is not None
        if not bool(torch.isfinite(self.total).all()):
            raise CompressionError(
                f"the inputs of layer {name!r} must be finite on the calibration batches, but hold NaN or infinity; "
                "check the batches and the model's weights, or set `activation_aware=False`"
            )
        return (self.total / max(1, self.n_rows)).cpu()


class _Latest:
    """The last input and its sum: query, key and value of an attention read one tensor."""

    def __init__(self) -> None:
        self._of: Callable[[], Tensor | None] = lambda: None
        self._geometry: object = None
        self._value: tuple[Tensor, int] | None = None

    def gram(self, x: Tensor, geometry: object, compute: Callable[[], tuple[Tensor, int]]) -> tuple[Tensor, int]:
        if self._value is None or self._of() is not x or self._geometry != geometry:
            self._of, self._geometry, self._value = weakref.ref(x), geometry, compute()
        return self._value


def _watch(module: nn.Module, path: str, sums: dict[str, _Sum], latest: _Latest, n_batches: int) -> Any:
    def add(name: str, value: tuple[Tensor, int]) -> None:
        sums.setdefault(name, _Sum()).add(*value)

    def read(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        if isinstance(module, nn.RNNBase):
            given = args[1] if len(args) > 1 else kwargs.get("hx")
            for level, rows in enumerate(level_inputs(module, x, given)):
                add(f"{path}:{level}", _gram(_sample(rows, n_batches)[None]))
        elif isinstance(module, nn.Embedding):
            counts = torch.bincount(x.flatten(), minlength=module.num_embeddings)
            add(path, (counts.double()[None], x.numel()))
        elif isinstance(module, nn.Linear):
            add(path, latest.gram(x, "linear", lambda: _gram(_sample(x.reshape(-1, x.shape[-1]), n_batches)[None])))
        else:
            geometry = tuple(getattr(module, name) for name in _GEOMETRY)
            add(path, latest.gram(x, geometry, lambda: _gram(windows(module, x, n_batches))))

    return module.register_forward_pre_hook(read, with_kwargs=True)


_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def windows(conv: Any, x: Tensor, n_batches: int = 1) -> Tensor:
    """The input windows of a convolution, (groups, n_rows, in / groups × kernel).

    Only the windows that count are taken out of the input.

    Args:
        conv: `nn.Conv1d` or `nn.Conv2d`.
        x: its input.
        n_batches: how many such inputs share the limit on rows.
    """
    x = x if x.ndim == conv.weight.ndim else x[None]
    axes = list(zip(x.shape[2:], conv.kernel_size, conv.stride, conv.dilation, _padding(conv), strict=True))
    n_places = [
        (size + sum(pads) - dilation * (width - 1) - 1) // stride + 1 for size, width, stride, dilation, pads in axes
    ]
    n_features = conv.weight[0].numel()
    chosen = _chosen(len(x) * math.prod(n_places), n_features, n_batches, x.device)
    sample, *places = torch.unravel_index(chosen, (len(x), *n_places))
    taps = torch.meshgrid(*(torch.arange(width, device=x.device) for width in conv.kernel_size), indexing="ij")
    index, inside = [sample[:, None]], torch.ones(1, 1, dtype=torch.bool, device=x.device)
    for place, tap, (size, _, stride, dilation, pads) in zip(places, taps, axes, strict=True):
        position = place[:, None] * stride + tap.flatten() * dilation - pads[0]
        if conv.padding_mode == "zeros":
            inside = inside & (position >= 0) & (position < size)
        index.append(_padded_position(position, size, conv.padding_mode))
    rows = x.movedim(1, -1)[tuple(index)] * inside[:, :, None]  # (rows, taps, channels)
    by_group: Tensor = rows.unflatten(2, (conv.groups, -1)).permute(2, 0, 3, 1).flatten(2)
    return by_group


def _padding(conv: Any) -> list[tuple[int, int]]:
    """Positions added before and after each spatial dimension."""
    both: list[int] = conv._reversed_padding_repeated_twice
    return list(zip(both[0::2], both[1::2], strict=True))[::-1]


def _padded_position(position: Tensor, size: int, mode: str) -> Tensor:
    """Where the value at a position of the padded input comes from."""
    if mode == "circular":
        return position % size
    if mode == "reflect":
        return size - 1 - (size - 1 - position.abs()).abs()
    return position.clamp(0, size - 1)


def _sample(rows: Tensor, n_batches: int) -> Tensor:
    """Rows (n, features) that count."""
    return rows[_chosen(len(rows), rows.shape[1], n_batches, rows.device)]


def _chosen(n_rows: int, n_features: int, n_batches: int, device: torch.device) -> Tensor:
    """Which of a batch's rows count: all of them, or its share of the limit, one at random of each equal stretch."""
    share = -(-max(_MIN_ROWS, _ROWS_PER_FEATURE * n_features) // n_batches)
    if n_rows <= share:
        return torch.arange(n_rows, device=device)
    offsets = torch.rand(share, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ((torch.arange(share) + offsets) * (n_rows / share)).long().clamp(max=n_rows - 1).to(device)


def _gram(rows: Tensor) -> tuple[Tensor, int]:
    """Sum of x x' over rows (groups, n_rows, n), and how many there are."""
    rows = rows.double()
    return rows.mT @ rows, rows.shape[1]


_VERSION = 1  # of what a file holds; another number makes all files anew


def cached_moments(model: nn.Module, paths: Sequence[str], batches: Sequence[Inputs]) -> Moments:
    """As `collect_moments`, read from the cache folder where it was written before.

    Files are written whole or not at all; a damaged one is made again.

    Raises:
        CompressionError: see `collect_moments`.
    """
    file = cache_folder() / "moments" / f"{moments_digest(model, paths, batches)}.safetensors"
    try:
        return load_file(file)
    except (FileNotFoundError, SafetensorError):
        moments = collect_moments(model, paths, batches)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, save({name: second.contiguous() for name, second in moments.items()}))
        return moments


def moments_digest(model: nn.Module, paths: Sequence[str], batches: Sequence[Inputs]) -> str:
    """32 hex digits that change with the model's tensors, its structure, what it computes, the layers or the data.

    Its output on the first batch stands for what it computes, as the tensors do not show the code of `forward`.
    """
    digest = hashlib.sha256(f"{_VERSION}{model!r}{list(paths)}{len(batches)}".encode())
    tensors = [*model.state_dict().values()]
    for inputs in batches:
        tensors += inputs.values() if isinstance(inputs, dict) else inputs
    with torch.no_grad():
        tensors += _tensors(call_model(copy.deepcopy(model).eval(), batches[0]))
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _tensors(value: object) -> Iterable[Tensor]:
    """The tensors in a model's output."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for item in items for tensor in _tensors(item)]
