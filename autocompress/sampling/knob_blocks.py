"""The parts of a space that are decided together: a residual branch with all its knobs, or one layer or group."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autocompress.space.candidate import bits_number
from autocompress.space.search_space import AS_IT_IS, Choice, Knob, SearchSpace

MAX_OPTIONS = 128

Option = Mapping[str, Choice]
"""Knob name -> choice, for all knobs of a block; the drop alone where the branch goes."""


@dataclass(frozen=True)
class KnobBlock:
    """Knobs whose latencies depend on each other, and their joint options.

    Attributes:
        name: of the branch, or of the layer or group.
        options: the first changes nothing.
    """

    name: str
    options: tuple[Option, ...]

    def nearest_to_bits(self, bits: int) -> int:
        """The option that changes nothing but the bits, each to this width where it is offered."""

        def distance(option: Option) -> tuple[int, float]:
            precisions = [value for name, value in option.items() if name.startswith("weight_bits:")]
            widths = [abs(bits_number(value) - bits) for value in precisions if isinstance(value, int | str)]
            changed = sum(
                value != AS_IT_IS[name.partition(":")[0]]
                for name, value in option.items()
                if not name.startswith("weight_bits:")
            )
            return changed, sum(widths)

        return min(range(len(self.options)), key=lambda i: distance(self.options[i]))


def blocks_of(space: SearchSpace) -> list[KnobBlock]:
    """The blocks of a space, in the order of their first knobs.

    A block with more joint options than `MAX_OPTIONS` is offered in fewer: all its layers get the same position in
    their lists of choices per kind of knob, or one single knob moves.
    """
    members: dict[str, list[Knob]] = defaultdict(list)
    for knob in space.knobs:
        members[knob.target if knob.kind == "drop" else knob.branch or knob.target].append(knob)
    return [KnobBlock(name, tuple(_options(knobs))) for name, knobs in members.items()]


def _options(knobs: Sequence[Knob]) -> list[Option]:
    drops = [knob for knob in knobs if knob.kind == "drop"]
    others = [_as_it_is_first(knob) for knob in knobs if knob.kind != "drop"]
    size = 1
    for choices in others:
        size *= len(choices[1])
    options = _product(others) if size <= MAX_OPTIONS else _in_step(others)
    return [*options, *({knob.name: True} for knob in drops)]


def _as_it_is_first(knob: Knob) -> tuple[str, tuple[Choice, ...]]:
    unchanged = AS_IT_IS[knob.kind]
    return knob.name, (unchanged, *(choice for choice in knob.choices if choice != unchanged))


def _product(others: Sequence[tuple[str, tuple[Choice, ...]]]) -> list[Option]:
    names = [name for name, _ in others]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(choices for _, choices in others))]


def _in_step(others: Sequence[tuple[str, tuple[Choice, ...]]]) -> list[Option]:
    """Options where all knobs of a kind share a position; also each single choice with the rest at full or 8 bits."""
    kinds: dict[str, list[tuple[str, tuple[Choice, ...]]]] = defaultdict(list)
    for name, choices in others:
        kinds[name.partition(":")[0]].append((name, choices))
    positions = [range(max(len(choices) for _, choices in group)) for group in kinds.values()]
    options: list[dict[str, Choice]] = []
    for places in itertools.product(*positions):
        option = {
            name: choices[min(place, len(choices) - 1)]
            for place, group in zip(places, kinds.values(), strict=True)
            for name, choices in group
        }
        options.append(option)
    in_step = [option for option in options if len(_changed_kinds(option)) <= 1]
    for base in in_step[:1] + [option for option in in_step if _changed_kinds(option) == {"weight_bits"}][:1]:
        for name, choices in others:
            options += [{**base, name: choice} for choice in choices]
    return [dict(items) for items in dict.fromkeys(tuple(option.items()) for option in options)]


def _changed_kinds(option: Option) -> set[str]:
    kinds = [(name.partition(":")[0], value) for name, value in option.items()]
    return {kind for kind, value in kinds if value != AS_IT_IS[kind]}
