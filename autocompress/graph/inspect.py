"""Builds the graph of a model: trace, labels, groups, layers, and the check of every group."""

from __future__ import annotations

from torch import Tensor, fx, nn

from autocompress.graph.additions import find_additions
from autocompress.graph.attributes import attribute_variants
from autocompress.graph.branches import find_cuts, find_regions, innermost, merge_cuts
from autocompress.graph.flow import Flow, find_head_axes, propagate
from autocompress.graph.groups import ALONE, Place, find_groups
from autocompress.graph.integer_ops import find_integer_ops
from autocompress.graph.layers import count_macs, find_layers
from autocompress.graph.model_graph import ChannelGroup, Frozen, ModelGraph
from autocompress.graph.rules import RULES
from autocompress.graph.size_constrained_groups import find_size_constrained_groups, resolve_sizes
from autocompress.graph.trace import ExampleInputs, Trace, UntraceableError, share_parameters, trace_model
from autocompress.graph.untraced import untraced_graph
from autocompress.graph.verify import PruningVerifier, join_groups, partition, resolve_attributes, verified_cuts
from autocompress.settings_schema import require_kind


def inspect_model(model: nn.Module, example_inputs: Tensor | ExampleInputs, *, verify: bool = True) -> ModelGraph:
    """Reads a model's layers, channel groups and residual branches, and what is frozen and why.

    Works on a copy: the model's parameters, buffers and modes are left as they were. A model that `torch.export`
    cannot trace has layers only, and everything else frozen with the line that broke it.

    Args:
        model: any module.
        example_inputs: a tuple (positional), a dict (keywords) or a bare tensor, as for `model(...)`.
        verify: check every group by removing a part of its channels from a copy and running it; groups that fail
            are frozen. Off, groups are what the rules say, which the user's own size literals may contradict.

    Raises:
        InputError: the model does not run on its own example inputs.
    """
    require_kind("model", model, "an nn.Module", nn.Module)
    probe = share_parameters(model)
    try:
        trace = trace_model(probe, example_inputs)
    except UntraceableError as error:
        return untraced_graph(probe, example_inputs, str(error))
    layers, frozen_layers = find_layers(probe, trace)
    flow, groups, frozen_channels = _find_channels(probe, trace, example_inputs, verify)
    regions = find_regions(trace)
    blocks = find_cuts(probe, regions, example_inputs)
    cuts = merge_cuts(blocks, find_additions(probe, trace, regions, example_inputs))
    branches = tuple(cut.branch for cut in innermost(cuts))
    frozen_branches: dict[str, str] = {}
    if verify:
        branches, frozen_branches = verified_cuts(PruningVerifier(probe, example_inputs, flow), cuts)
    return ModelGraph(
        layers=layers,
        groups=groups,
        branches=branches,
        frozen=(
            *frozen_channels,
            *frozen_layers,
            *(Frozen(name, "branch", why) for name, why in frozen_branches.items()),
        ),
        n_params=sum(parameter.numel() for parameter in model.parameters()),
        n_macs=count_macs(trace),
        ops=find_integer_ops(probe, trace, regions, layers),
    )


def _find_channels(
    probe: nn.Module, trace: Trace, example_inputs: Tensor | ExampleInputs, verify: bool
) -> tuple[Flow, tuple[ChannelGroup, ...], tuple[Frozen, ...]]:
    """Channel groups.

    Where whole attention heads cannot go alone, they are tried with blocks of the stream, then slots within the heads.
    """
    axes = find_head_axes(trace, RULES)
    blocks: frozenset[fx.Node] = frozenset()
    while True:
        flow = propagate(trace, RULES, axes, blocks)
        groups, frozen, alone = find_groups(flow)
        if not verify:
            return flow, groups, frozen
        variants, views = attribute_variants(probe, flow, groups)
        verifier = PruningVerifier(probe, example_inputs, flow)
        chosen, reasons = resolve_attributes(verifier, variants)
        if not views.keys() & reasons.keys():
            left = [chosen.get(group.name, group) for group in groups if group.name not in reasons]
            good, bad = partition(left, verifier.groups_failure)
            reasons |= {group.name: why for group, why in bad.items()}
            if not views.keys() & reasons.keys():
                good, reasons = join_groups(verifier, groups, good, reasons)
                frozen += tuple(Frozen(name, "channels", why) for name, why in reasons.items())
                return flow, *_with_size_constrained_groups(probe, example_inputs, flow, good, frozen, alone)
        failed = frozenset().union(*(views[name] for name in reasons if name in views))
        if failed <= blocks:
            axes = {node: place for node, place in axes.items() if node not in failed}
        blocks = blocks - failed if failed <= blocks else blocks | failed


def _with_size_constrained_groups(
    probe: nn.Module,
    example_inputs: Tensor | ExampleInputs,
    strict: Flow,
    groups: list[ChannelGroup],
    frozen: tuple[Frozen, ...],
    alone: dict[str, tuple[Place, ...]],
) -> tuple[tuple[ChannelGroup, ...], tuple[Frozen, ...]]:
    """The groups and what is frozen, once channels that hang together as one are tried by number."""
    stuck = [places for name, places in alone.items() if places and all(group.name != name for group in groups)]
    if not stuck:
        return tuple(groups), frozen
    flow = propagate(strict.trace, RULES, strict.head_axes, strict.blocks, by_number=True)
    verifier = PruningVerifier(probe, example_inputs, flow)
    for group in find_size_constrained_groups(probe, example_inputs, flow, stuck):
        settled = resolve_sizes(verifier, group)
        if isinstance(settled, ChannelGroup):
            why = verifier.groups_failure([*groups, settled])
            settled = settled if why is None else f"together with others, {why}"
        left = tuple(item for item in frozen if not (item.name == group.name and item.reason == ALONE))
        if isinstance(settled, ChannelGroup):
            groups, frozen = [*groups, settled], left
        else:
            frozen = (*left, Frozen(group.name, "channels", settled))
    places = list(flow.states)
    return tuple(sorted(groups, key=lambda group: places.index(group.couplings[0].tensor))), frozen
