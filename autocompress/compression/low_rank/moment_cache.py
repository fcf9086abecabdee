"""Second moments on disk, under a digest of the model and of the data, so that they are collected once."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autocompress.compression.low_rank.moments import Moments, collect_moments
from autocompress.task import Inputs, call_model
from autocompress.tasks.data import cache_folder

_VERSION = 1  # of what a file holds; another number makes all files anew


def cached_moments(model: nn.Module, paths: Sequence[str], batches: Sequence[Inputs]) -> Moments:
    """What `collect_moments` gives, read from the cache folder where it was written before.

    Files are written whole or not at all; a damaged one is made again.

    Raises:
        CompressionError: see `collect_moments`.
    """
    file = cache_folder() / "moments" / f"{moments_digest(model, paths, batches)}.safetensors"
    try:
        return load_file(file)
    except (FileNotFoundError, SafetensorError):
        moments = collect_moments(model, paths, batches)
        _write(file, moments)
        return moments


def moments_digest(model: nn.Module, paths: Sequence[str], batches: Sequence[Inputs]) -> str:
    """32 hex digits that change with the model's tensors, its structure, what it computes, the layers or the data.

    What it computes is told by its output on the first batch: the code of a `forward` leaves no trace in the tensors.
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


def _write(file: Path, moments: Moments) -> None:
    """Under a name of this process first: several workers may collect at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    save_file({name: second.contiguous() for name, second in moments.items()}, temporary)
    temporary.replace(file)
