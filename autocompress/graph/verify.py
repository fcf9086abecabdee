"""Checks channel groups once: a copy with channels removed must give the outputs of the original with them masked."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autocompress.graph.flow import Flow
from autocompress.graph.masked import MaskedRun
from autocompress.graph.model_graph import ChannelGroup
from autocompress.graph.shrink import remove_
from autocompress.graph.trace import ExampleInputs, share_parameters, split_inputs

TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference relative to the largest output, where it is not 1e-4."""


class GroupCheck:
    """Removes about a third of each group's channels from a copy and compares it with the masked original.

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

    def settle(
        self, groups: tuple[ChannelGroup, ...], variants: Mapping[str, Sequence[ChannelGroup]]
    ) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
        """The groups that hold, and the reason of each that does not.

        Args:
            groups: candidates.
            variants: group name -> the same group with other attributes of the user's modules, tried in order.
        """
        good, reasons = self._sift(self._choose(groups, variants))
        return tuple(good), reasons

    def _choose(
        self, groups: tuple[ChannelGroup, ...], variants: Mapping[str, Sequence[ChannelGroup]]
    ) -> list[ChannelGroup]:
        """For each group with variants the first that holds: the same place in all lists at best, else one by one."""
        varied = [group for group in groups if group.name in variants]
        for place in range(max((len(variants[group.name]) for group in varied), default=0)):
            chosen = {group.name: variants[group.name][min(place, len(variants[group.name]) - 1)] for group in varied}
            if self.failure(list(chosen.values())) is None:
                return [chosen.get(group.name, group) for group in groups]
        holds = (
            (group.name, next((item for item in variants[group.name] if self.failure([item]) is None), group))
            for group in varied
        )
        first = dict(holds)
        return [first.get(group.name, group) for group in groups]

    def _sift(self, groups: list[ChannelGroup]) -> tuple[list[ChannelGroup], dict[str, str]]:
        """Groups together, halved on failure; survivors of a failure are checked together once more."""
        failure = self.failure(groups)
        if failure is None:
            return groups, {}
        if len(groups) == 1:
            return [], {groups[0].name: failure}
        middle = len(groups) // 2
        first, reasons = self._sift(groups[:middle])
        second, more = self._sift(groups[middle:])
        reasons |= more
        kept = list(first)
        if self.failure(first + second) is None:
            return first + second, reasons
        for group in second:
            failure = self.failure([*kept, group])
            if failure is None:
                kept.append(group)
            else:
                reasons[group.name] = f"together with other groups {failure}"
        return kept, reasons

    def failure(self, groups: list[ChannelGroup]) -> str | None:
        """Why removing channels of all these groups at once goes wrong, or None when it does not."""
        if not groups:
            return None
        removed = {group: _third(group) for group in groups}
        expected = self._masked(removed)
        pruned = share_parameters(self._probe)
        try:
            remove_(pruned, removed)
            found = self._run(pruned)
        except Exception as error:  # the user's forward may raise anything on shapes it does not expect
            return f"a pruned copy fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        return _difference(expected, found)

    def _run(self, model: nn.Module) -> list[Tensor]:
        with torch.no_grad(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            outputs = model(*self._args, **self._kwargs)
        return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]

    def _masked(self, removed: dict[ChannelGroup, list[int]]) -> list[Tensor]:
        gone: set[int] = set()
        for group, channels in removed.items():
            first = group.couplings[0]
            labels: Any = self._flow.states[first.tensor][first.dim]
            slots = [slot for index in channels for slot in first.slots[index]]
            gone.update(self._component[labels[slots]].tolist())
        states: dict[str, Tensor] = dict(self._probe.named_parameters(remove_duplicate=False))
        states.update(self._probe.named_buffers(remove_duplicate=False))
        inputs = pytree.tree_leaves((self._args, self._kwargs))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return MaskedRun(self._flow, self._component, gone).outputs(states, inputs)


def _third(group: ChannelGroup) -> list[int]:
    """A third of the channels, at least one, scattered so that a cut at a fixed position shows."""
    chosen = np.random.default_rng(group.n_channels).permutation(group.n_channels)
    return sorted(chosen[: max(1, group.n_channels // 3)].tolist())


def _difference(expected: list[Tensor], found: list[Tensor]) -> str | None:
    if len(expected) != len(found):
        return f"a pruned copy returns {len(found)} tensors instead of {len(expected)}"
    for want, have in zip(expected, found, strict=True):
        if want.shape != have.shape:
            return f"a pruned copy returns shape {tuple(have.shape)} instead of {tuple(want.shape)}"
        limit = TOLERANCE.get(want.dtype, 1e-4)
        want, have = want.double(), have.double()
        worst = (want - have).abs().max().item() if want.numel() else 0.0
        scale = want.abs().max().item() if want.numel() else 0.0
        if not worst <= limit * scale + 1e-7:
            return (
                f"a pruned copy gives other outputs than the masked original (off by {worst / max(scale, 1e-12):.1e})"
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
