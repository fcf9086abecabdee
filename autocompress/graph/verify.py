"""Checks groups and branches: a copy without them must give the outputs of the original with them masked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autocompress.graph.branches import Cut, innermost
from autocompress.graph.cut import cut_branches_
from autocompress.graph.flow import Flow
from autocompress.graph.masked import MaskedRun
from autocompress.graph.model_graph import ChannelGroup, ResidualBranch
from autocompress.graph.shrink import Removed, remove_
from autocompress.graph.trace import ExampleInputs, share_parameters, split_inputs

Item = TypeVar("Item")

TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference relative to the largest output, where it is not 1e-4."""


class PruningVerifier:
    """Runs changed copies of a model, and the original with the same parts masked, on the example inputs.

    Args:
        probe: a copy of the model in evaluation mode; its constant tensors are replaced by varied ones.
        example_inputs: inputs of the user's model.
        flow: labels of the trace of `probe`.
    """

    def __init__(self, probe: nn.Module, example_inputs: Tensor | ExampleInputs, flow: Flow) -> None:
        self._probe = probe
        self._args, self._kwargs = split_inputs(example_inputs)
        self._flow = flow
        self._component = flow.labels.resolve()[0]
        vary_constants_(probe)

    def groups_failure(self, groups: Sequence[ChannelGroup]) -> str | None:
        """Why removing channels of all these groups at once goes wrong, or None when it does not.

        Between a third and half of each group's channels are removed, of groups of one size not equally many: two that
        only fit each other while they are equally large must not pass as two.
        """
        counts: dict[int, int] = {}
        removed = []
        for group in groups:
            number = counts.setdefault(group.n_channels, 0)
            counts[group.n_channels] += 1
            removed.append((group, _some(group, number)))
        return self.failure(removed)

    def failure(self, removed: Removed) -> str | None:
        """Why removing these channels of each group at once goes wrong, or None when it does not."""
        gone: set[int] = set()
        for group, channels in removed:
            for coupling in group.couplings:
                labels: Any = self._flow.states[coupling.tensor][coupling.dim]
                gone.update(self._component[labels[list(group.gone(coupling, channels))]].tolist())
        return self._failure(
            MaskedRun(self._flow, self._component, gone), lambda copy: remove_(copy, removed), "pruned"
        )

    def cuts_failure(self, cuts: Sequence[Cut]) -> str | None:
        """Why dropping all these branches at once goes wrong, or None when it does not."""
        sums = {node: operand for cut in cuts for node, operand in cut.sums.items()}
        branches = [cut.branch for cut in cuts]
        masked = MaskedRun(self._flow, self._component, set(), sums)
        return self._failure(masked, lambda copy: cut_branches_(copy, branches), "cut")

    def _failure(self, masked: MaskedRun, change_: Callable[[nn.Module], None], what: str) -> str | None:
        try:
            found = self._run(change_)
        except Exception as error:  # the user's forward may raise anything on shapes it does not expect
            return f"a {what} copy fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        return _difference(self._masked(masked), found, what)

    def _run(self, change_: Callable[[nn.Module], None]) -> list[Tensor]:
        model = share_parameters(self._probe)
        change_(model)
        with torch.no_grad(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            outputs = model(*self._args, **self._kwargs)
        return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]

    def _masked(self, masked: MaskedRun) -> list[Tensor]:
        states: dict[str, Tensor] = dict(self._probe.named_parameters(remove_duplicate=False))
        states.update(self._probe.named_buffers(remove_duplicate=False))
        inputs = pytree.tree_leaves((self._args, self._kwargs))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return masked.outputs(states, inputs)


def partition(
    items: Sequence[Item], failure_of: Callable[[Sequence[Item]], str | None]
) -> tuple[list[Item], dict[Item, str]]:
    """The items that hold together, and the reason of each that does not.

    All at once, halved on failure, so that n items of which k fail take about k log n checks; the survivors of two
    halves are checked together once more.
    """
    failure = failure_of(items) if items else None
    if failure is None:
        return list(items), {}
    if len(items) == 1:
        return [], {items[0]: failure}
    middle = len(items) // 2
    first, reasons = partition(items[:middle], failure_of)
    second, more = partition(items[middle:], failure_of)
    reasons |= more
    if not (first and second) or failure_of(first + second) is None:
        return first + second, reasons
    kept: list[Item] = list(first)
    for item in second:
        failure = failure_of([*kept, item])
        if failure is None:
            kept.append(item)
        else:
            reasons[item] = f"together with others, {failure}"
    return kept, reasons


def resolve_attributes(
    verifier: PruningVerifier, variants: Mapping[str, Sequence[ChannelGroup]]
) -> tuple[dict[str, ChannelGroup], dict[str, str]]:
    """The variant that holds of each group, by name, and the reason of each group of which none does.

    Args:
        verifier: of the model.
        variants: group name -> the same group with other attributes of the user's modules, tried in order; groups with
            the same sets of attributes (the heads of equal blocks) get the same choice, made for the first of them.
    """
    chosen: dict[str, ChannelGroup] = {}
    reasons: dict[str, str] = {}
    for alike in _alike(variants):
        place, why = _first_that_holds(verifier, variants[alike[0]])
        for name in alike:
            if why is None:
                chosen[name] = variants[name][place]
            else:
                reasons[name] = why
    return chosen, reasons


def _alike(variants: Mapping[str, Sequence[ChannelGroup]]) -> list[list[str]]:
    """Names of groups whose variants differ in the paths of modules only."""
    kinds: dict[object, list[str]] = {}
    for name, items in variants.items():
        steps = tuple(tuple((item.name, item.step, item.place) for item in group.attributes) for group in items)
        kinds.setdefault((items[0].n_channels, steps), []).append(name)
    return list(kinds.values())


def _first_that_holds(verifier: PruningVerifier, items: Sequence[ChannelGroup]) -> tuple[int, str | None]:
    """Place of the first variant that holds and None, or the reason why the first one does not."""
    reasons = []
    for place, item in enumerate(items):
        why = verifier.groups_failure([item])
        if why is None:
            return place, None
        reasons.append(why)
    return 0, reasons[0]


def verified_cuts(verifier: PruningVerifier, cuts: list[Cut]) -> tuple[tuple[ResidualBranch, ...], dict[str, str]]:
    """The branches that hold, and the reason of each that does not, by name.

    Where an inner block fails, the block around it is tried, and what is named as tried instead; a cut that fails is
    only mentioned where no other one takes its residual sums away.
    """
    left, reasons = list(cuts), dict[Cut, str]()
    while True:
        good, bad = partition(innermost(left), verifier.cuts_failure)
        if not bad:
            covered = {node for cut in good for node in cut.sums}
            failed = {cut.branch.name: why for cut, why in reasons.items() if covered.isdisjoint(cut.sums)}
            return tuple(cut.branch for cut in good), failed
        reasons.update(bad)
        left = [item for cut in left for item in ((cut,) if cut not in bad else (cut.instead,)) if item is not None]


def _some(group: ChannelGroup, number: int) -> list[int]:
    """A third of the channels, or up to half with the number; scattered so that a cut at a fixed position shows."""
    fewest = max(1, group.n_channels // 3)
    count = fewest + number % max(1, group.n_channels // 2 - fewest + 1)
    if group.sizes:
        return list(range(group.nearest(count)))
    chosen = np.random.default_rng(group.n_channels).permutation(group.n_channels)
    return sorted(chosen[:count].tolist())


def _difference(expected: list[Tensor], found: list[Tensor], what: str) -> str | None:
    if len(expected) != len(found):
        return f"a {what} copy returns {len(found)} tensors instead of {len(expected)}"
    for want, have in zip(expected, found, strict=True):
        if want.shape != have.shape:
            return f"a {what} copy returns shape {tuple(have.shape)} instead of {tuple(want.shape)}"
        limit = TOLERANCE.get(want.dtype, 1e-4)
        want, have = want.double(), have.double()
        worst = (want - have).abs().max().item() if want.numel() else 0.0
        scale = want.abs().max().item() if want.numel() else 0.0
        if not worst <= limit * scale + 1e-7:
            return (
                f"a {what} copy gives other outputs than the masked original (off by {worst / max(scale, 1e-12):.1e})"
            )
    return None


def vary_constants_(probe: nn.Module) -> None:
    """Gives every constant tensor (fresh norms, zero biases) varied values, which a slot mixed up would show in."""
    source = torch.Generator().manual_seed(0)
    varied: dict[int, tuple[Tensor, Tensor]] = {}
    for module in probe.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if id(tensor) not in varied and _is_constant(tensor):
                new = tensor.detach() + 0.1 * torch.rand(tensor.shape, generator=source).to(tensor)
                # the old tensor is kept, so that no other can take over its identity meanwhile
                varied[id(tensor)] = tensor, nn.Parameter(new, False) if isinstance(tensor, nn.Parameter) else new
            if id(tensor) in varied:
                setattr(module, name, varied[id(tensor)][1])


def _is_constant(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 1 and not bool((tensor != tensor.flatten()[0]).any())


MOST_NAMES = 2


def join_groups(
    verifier: PruningVerifier, groups: Sequence[ChannelGroup], good: Sequence[ChannelGroup], reasons: Mapping[str, str]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The good groups and those that hold once they are one, in network order, and the reasons that are left.

    Channel i of a group that fails goes with channel i of all groups that fail, are as large, and are made by layers of
    one name (or two) that read it.

    Args:
        verifier: of the model.
        groups: all, in network order.
        good: those that hold.
        reasons: of those that do not, by name.
    """
    good, left = list(good), dict(reasons)
    for group in groups:
        failed = [item for item in groups if item.name in left]
        tried = _sets_read_by(group, failed) if group in failed else ()
        others = next((some for some in tried if verifier.groups_failure([_joined(group, some)]) is None), [])
        if others and verifier.groups_failure([*good, _joined(group, others)]) is None:
            good.append(_joined(group, others))
            for item in (group, *others):
                del left[item.name]
    places = [group.name for group in groups]
    return sorted(good, key=lambda group: places.index(group.name)), left


def _sets_read_by(group: ChannelGroup, failed: Sequence[ChannelGroup]) -> Iterator[list[ChannelGroup]]:
    by_name: dict[str, list[ChannelGroup]] = {}
    for other in failed:
        is_alike = other.name != group.name and other.n_channels == group.n_channels and other.producers
        if is_alike and set(other.producers) <= set(group.consumers):
            by_name.setdefault(other.producers[0].rpartition(".")[2], []).append(other)
    for size in range(1, MOST_NAMES + 1):
        for names in combinations(by_name, size):
            yield [other for name in names for other in by_name[name]]


def _joined(group: ChannelGroup, others: Sequence[ChannelGroup]) -> ChannelGroup:
    items = (group, *others)
    return replace(
        group,
        couplings=tuple(coupling for item in items for coupling in item.couplings),
        producers=tuple(dict.fromkeys(path for item in items for path in item.producers)),
        consumers=tuple(dict.fromkeys(path for item in items for path in item.consumers)),
    )
