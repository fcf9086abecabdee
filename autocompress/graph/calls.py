"""Notes how modules are called and what they return, so that something else can stand in their place."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.graph.trace import ExampleInputs, split_inputs


@dataclass(frozen=True)
class Call:
    """The last call of a module.

    Attributes:
        is_plain: it got one argument, by position.
        returns: () where it returned one tensor, else as `Stub.returns` says it; None for anything else.
        sizes: where what it returned differs from its first tensor in shape, as (dimension, size); None where they have
            not the same number of dimensions.
    """

    is_plain: bool
    returns: tuple[str, ...] | None
    sizes: tuple[tuple[int, int], ...] | None = None


def find_calls(model: nn.Module, paths: Iterable[str], example_inputs: Tensor | ExampleInputs) -> dict[str, Call]:
    """The calls of the modules at these paths in one forward pass."""
    found: dict[str, Call] = {}

    def hook(path: str) -> Any:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            returns = _returned(output, args, kwargs)
            first = next((item for item in (*args, *kwargs.values()) if isinstance(item, Tensor)), None)
            result = output[0] if returns else output
            sizes = None if returns is None or first is None else _sizes(first, result)
            found[path] = Call(len(args) == 1 and not kwargs, returns, sizes)

        return model.get_submodule(path).register_forward_hook(note, with_kwargs=True)

    handles = [hook(path) for path in paths]
    args, kwargs = split_inputs(example_inputs)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            if handles:
                model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _returned(output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...] | None:
    if isinstance(output, Tensor):
        return ()
    if type(output) is tuple and output and isinstance(output[0], Tensor):
        return ("stream", *(_source(item, args, kwargs) for item in output[1:]))
    return None


def _sizes(first: Tensor, result: Tensor) -> tuple[tuple[int, int], ...] | None:
    if first.dim() != result.dim():
        return None
    pairs = enumerate(zip(first.shape, result.shape, strict=True))
    return tuple((dim, after) for dim, (before, after) in pairs if before != after)


def _source(item: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Where a further returned value came from: an argument that is handed on, or nowhere."""
    given: Iterator[tuple[object, Any]] = itertools.chain(enumerate(args), kwargs.items())
    place = next((name for name, value in given if value is item), None) if isinstance(item, Tensor) else None
    return "nothing" if place is None else f"argument {place}"
