"""Replaces residual blocks by their shortcuts, in place."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.graph.model_graph import ResidualBranch, Stub

ACTIVATION_PREFIX = "nn."


class Shortcut(nn.Sequential):
    """Replaces a residual block that is called with more than its stream (such as a mask), or returns more.

    The block's caller is the user's own code, whatever it hands over, so that any further argument is accepted.

    Args:
        steps: the submodules that stood on the shortcut.
        returns: as in `Stub`.
    """

    def __init__(self, steps: OrderedDict[str, nn.Module], returns: tuple[str, ...]) -> None:
        super().__init__(steps)
        self.returns = returns

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The stream, through the steps, alone or in a tuple as the block returned it."""
        given, stream = _given(args, kwargs)
        for module in self:
            stream = module(stream)
        return _as_returned(stream, self.returns, given)


class Skipped(nn.Module):
    """Replaces a module whose result is no longer added to a stream: gives its first tensor unchanged, or zeros.

    Args:
        stub: says which.
    """

    def __init__(self, stub: Stub) -> None:
        super().__init__()
        self._stub = stub

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The stream, alone or in a tuple as the module returned it."""
        given, stream = _given(args, kwargs)
        return _as_returned(self._result(stream), self._stub.returns, given)

    def _result(self, stream: Tensor) -> Tensor:
        if self._stub.sizes is None:
            return torch.zeros_like(stream) if self._stub.is_last else stream
        sizes = dict(enumerate(stream.shape)) | dict(self._stub.sizes)
        return stream.new_zeros([1] * stream.dim() if self._stub.is_last else list(sizes.values()))


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """All arguments by name or place, and the first tensor among them, which is the stream."""
    given = {**{str(place): value for place, value in enumerate(args)}, **kwargs}
    return given, next(value for value in given.values() if isinstance(value, Tensor))


def _as_returned(stream: Tensor, returns: tuple[str, ...], given: dict[str, Any]) -> Any:
    if not returns:
        return stream
    return tuple(stream if word == "stream" else given.get(word.removeprefix("argument ")) for word in returns)


def cut_branches_(model: nn.Module, branches: Sequence[ResidualBranch]) -> None:
    """Each block becomes a sequence of what stood on its shortcut; submodules keep their paths.

    Parts that a stream adds become stubs.
    """
    for branch in branches:
        for stub in branch.stubs:
            _replace_(model, stub.path, Skipped(stub))
        if branch.stubs:
            continue
        block = model.get_submodule(branch.name)
        steps = [tuple(step.split(".")) for step in branch.shortcut]
        parts = _nested(block, steps, "")
        kept: nn.Module = nn.Sequential(parts) if parts else nn.Identity()
        if not branch.is_plain:
            kept = Shortcut(parts, branch.returns)
        _replace_(model, branch.name, kept)


def _replace_(model: nn.Module, path: str, new: nn.Module) -> None:
    """Replaces a module; plain attributes, which the user's code may read, are copied."""
    old = model.get_submodule(path)
    new.training = old.training
    for name, value in vars(old).items():
        if not name.startswith("_") and isinstance(value, (bool, int, float, str)):
            setattr(new, name, value)
    holder, _, name = path.rpartition(".")
    setattr(model.get_submodule(holder), name, new)


def _nested(block: nn.Module, steps: list[tuple[str, ...]], prefix: str) -> OrderedDict[str, nn.Module]:
    """Modules by name for one level of paths: steps below a common submodule are nested in a sequence of its name."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for step in steps:
        if prefix == "" and f"{step[0]}." == ACTIVATION_PREFIX:
            parts[f"activation_{len(parts)}"] = getattr(nn, step[1])().train(block.training)
        elif len(step) == 1:
            parts[step[0]] = block.get_submodule(prefix + step[0])
        elif step[0] not in parts:
            below = [item[1:] for item in steps if item[0] == step[0]]
            inner = nn.Sequential(_nested(block, below, f"{prefix}{step[0]}."))
            inner.training = block.training
            parts[step[0]] = inner
    return parts
