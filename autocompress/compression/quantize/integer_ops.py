"""Decides which ops without weights run on integers, and rounds what they give.

Such an op pays where what it reads comes from 8-bit layers or other integer ops, and where 8-bit layers or other
integer ops read the result: else engines turn integers to float before it and back behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from autocompress.compression.quantize.activations import ActivationQuantizer
from autocompress.graph import IntegerOp, ResidualBranch


@dataclass(frozen=True)
class Surroundings:
    """What a graph has beside layers that decides where values are rounded.

    Attributes:
        branches: the residual branches that were not dropped.
        dropped: those that were.
        ops: see `IntegerOp`.
    """

    branches: Sequence[ResidualBranch] = ()
    dropped: Sequence[ResidualBranch] = ()
    ops: Sequence[IntegerOp] = ()


class RoundedSiLU(nn.SiLU):
    """A `SiLU` as engines compute it on integers: x times the rounded sigmoid of x."""

    sigmoid_quantizer: ActivationQuantizer

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """Shapes as `nn.SiLU`."""
        rounded: Tensor = input * self.sigmoid_quantizer(input.sigmoid())
        return rounded


def active_ops(
    around: Surroundings, integer: Collection[str], blocks: Sequence[ResidualBranch], model: nn.Module
) -> tuple[IntegerOp, ...]:
    """The ops that run on integers, in network order.

    Args:
        around: the graph.
        integer: paths of the layers that read and give integers.
        blocks: the branches whose input is rounded where they begin.
        model: says which sites there are.
    """
    modules = dict(model.named_modules())
    ops = {op.name: op for op in _without_dropped(around)}

    def stays(op: IntegerOp) -> bool:
        readers = readers_of(op, ops.values())
        is_fed = all(source in integer or source in ops for source in op.sources)
        is_read = bool(readers) or any(path in integer for path in op.feeds)
        if op.kind == "silu" and type(modules.get(op.site)) is not nn.SiLU:
            return False
        has_site = op.site != "" and op.site in modules
        return is_fed and is_read and (has_site or not needs_site(op, readers, integer, blocks))

    n_before = -1
    while len(ops) != n_before:
        n_before = len(ops)
        ops = {name: op for name, op in ops.items() if stays(op)}
    return tuple(ops.values())


def readers_of(op: IntegerOp, ops: Iterable[IntegerOp]) -> list[IntegerOp]:
    """The ops that read what one gives."""
    return [other for other in ops if op.name in other.sources]


def needs_site(
    op: IntegerOp, readers: Sequence[IntegerOp], integer: Collection[str], blocks: Iterable[ResidualBranch]
) -> bool:
    """Whether an op's output is rounded on its own: neither its readers nor a block that begins there round it."""
    if not readers and not op.feeds_others and all(path in integer for path in op.feeds):
        return False
    for block in blocks:
        if any(path in block.readers for path in op.feeds):
            within = (*op.feeds, *(reader.module for reader in readers))
            return not all(_is_within(path, block.name) for path in within)
    return True


def round_outputs_(
    model: nn.Module, ops: Sequence[IntegerOp], integer: Collection[str], blocks: Sequence[ResidualBranch]
) -> dict[str, ActivationQuantizer]:
    """Rounds what the ops give, in place; layers that thus read rounded values -> by what."""
    covered: dict[str, ActivationQuantizer] = {}
    for op in ops:
        module: Any = model.get_submodule(op.site) if op.site else None
        if op.kind == "silu":
            module.__class__ = RoundedSiLU
            module.sigmoid_quantizer = ActivationQuantizer(non_negative=True)
        if needs_site(op, readers_of(op, ops), integer, blocks):
            module.output_quantizer = quantizer = ActivationQuantizer(op.relu, op.ceiling)
            module.register_forward_hook(_round_result)
            covered |= dict.fromkeys(op.feeds, quantizer)
    return covered


def _round_result(module: Any, _args: tuple[Any, ...], result: Any) -> Any:
    return module.output_quantizer(result) if isinstance(result, Tensor) else result


def _without_dropped(around: Surroundings) -> list[IntegerOp]:
    """The ops that are left, each reading what stands in place of a dropped sum: its shortcut."""
    gone = {path for branch in around.dropped for path in branch.layers}
    instead: dict[str, str] = {}
    left: dict[str, IntegerOp] = {}
    for whole in around.ops:
        sources = tuple(instead.get(source, source) for source in whole.sources)
        op = replace(whole, sources=sources, feeds=tuple(path for path in whole.feeds if path not in gone))
        if not any(_is_within(op.module, branch.name) for branch in around.dropped):
            left[op.name] = op
            continue
        instead[op.name] = next((source for source in sources if source not in gone), "")
        maker = left.get(instead[op.name])
        if maker is not None:
            others = maker.feeds_others or op.feeds_others
            feeds = tuple(dict.fromkeys(maker.feeds + op.feeds))
            left[maker.name] = replace(maker, feeds=feeds, feeds_others=others)
    return list(left.values())


def _is_within(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}.")
