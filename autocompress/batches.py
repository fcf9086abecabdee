"""Batches of any nesting: how many samples they hold, and parts of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from autocompress.devices import map_tensors, tensors_in
from autocompress.errors import InputError


def n_samples(inputs: object) -> int:
    """The size of the first dimension of the first tensor that has one; 1 where none has."""
    return next((int(tensor.shape[0]) for tensor in tensors_in(inputs) if tensor.ndim), 1)


def check_common_size(inputs: object, source: str) -> None:
    """Checks that all tensors of a batch's inputs hold the same number of samples.

    Raises:
        InputError: they do not.
    """
    sizes = [tuple(tensor.shape) for tensor in tensors_in(inputs) if tensor.ndim]
    if len({size[0] for size in sizes}) > 1:
        raise InputError(
            f"the first dimension of each input counts samples and must be the same, but {source} gives inputs of "
            f"shapes {sizes}; put the samples first, or give what all samples share to the model itself"
        )


def part_of(value: Any, start: int, stop: int, size: int) -> Any:
    """Samples from `start` to `stop` of a batch of `size`; what does not count samples stays whole.

    A list with an entry for each sample, as detection has for its targets, is cut too.
    """
    if isinstance(value, list) and len(value) == size and not _counts(value, size):
        return value[start:stop]
    if isinstance(value, dict):
        return {key: part_of(item, start, stop, size) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(part_of(item, start, stop, size) for item in value)
    return map_tensors(lambda tensor: tensor[start:stop] if tensor.ndim and len(tensor) == size else tensor, value)


def restored(example: Any, tensors: Sequence[Tensor]) -> Any:
    """The tensors in the form of an example: what `autocompress.devices.tensors_in` takes apart, put together."""
    following = iter(tensors)
    return map_tensors(lambda _: next(following), example)


IGNORED = -100
"""A target that counts in no loss and no figure, as in `torch.nn.functional.cross_entropy`."""
MASK = "attention_mask"
"""Name of the input that says which positions are no padding, as in Hugging Face's models."""


def padding_mask(inputs: object) -> Tensor | None:
    """True for positions that are no padding, (n_samples, n_positions), where the inputs say so."""
    mask = inputs.get(MASK) if isinstance(inputs, dict) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def counted(shape: tuple[int, ...], inputs: object, targets: object) -> Tensor | None:
    """True for the rows of outputs that count, (n_samples, ...); None where all do.

    Rows of padding do not, nor those whose target is -100.

    Args:
        shape: of the outputs without their last dimension.
        inputs: of the batch.
        targets: of the batch.
    """
    kept: Tensor | None = None
    if isinstance(targets, Tensor) and targets.shape == shape and not targets.is_floating_point():
        kept = targets != IGNORED
    mask = padding_mask(inputs)
    if mask is not None and len(shape) > 1 and mask.shape == shape[:2]:
        mask = mask.reshape(*mask.shape, *[1] * (len(shape) - 2)).expand(shape)
        kept = mask if kept is None else kept & mask
    return kept


def _counts(items: list[Any], size: int) -> bool:
    """Whether the items are themselves tensors of `size` samples."""
    return bool(items) and all(isinstance(item, Tensor) and item.ndim and len(item) == size for item in items)


def parts_of(batch: Any, inputs: object, n_parts: int) -> Iterator[tuple[Any, float]]:
    """A batch in equal parts, each with its share of the samples; whole where it holds too few."""
    size = n_samples(inputs)
    step = max(1, -(-size // n_parts))
    for start in range(0, size, step):
        stop = min(start + step, size)
        yield (batch if stop - start == size else part_of(batch, start, stop, size)), (stop - start) / size
