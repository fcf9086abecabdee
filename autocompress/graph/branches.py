"""Finds residual blocks in a trace: modules whose output is a shortcut plus a branch, and how they are called."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.graph.flow import rule_key
from autocompress.graph.layers import KINDS
from autocompress.graph.model_graph import ResidualBranch
from autocompress.graph.trace import ExampleInputs, Trace, module_path, split_inputs

ACTIVATIONS = {
    "aten.relu": "nn.ReLU",
    "aten.relu6": "nn.ReLU6",
    "aten.silu": "nn.SiLU",
    "aten.sigmoid": "nn.Sigmoid",
    "aten.tanh": "nn.Tanh",
    "aten.hardswish": "nn.Hardswish",
}
"""Functions after a residual sum that a torch.nn module without arguments stands for."""


KEEP_FRACTION = frozenset({"aten.to", "aten._to_copy", "aten.contiguous", "aten.clone", "aten.alias", "aten.detach"})
"""Ops that hand on their argument, where its type stays the same."""


@dataclass(frozen=True, eq=False)
class Cut:
    """A branch that could go.

    Attributes:
        branch: what the user sees.
        sums: residual sum -> its operand that stays.
        instead: tried where this one does not hold.
    """

    branch: ResidualBranch
    sums: dict[fx.Node, fx.Node]
    instead: Cut | None = None


@dataclass
class Region:
    """The nodes of one call of a module.

    Attributes:
        path: of the module.
        inputs: tensors from outside that it reads, parameters and constants left out.
        outputs: its nodes that others read.
    """

    path: str
    nodes: dict[fx.Node, None] = field(default_factory=dict)
    inputs: list[fx.Node] = field(default_factory=list)
    outputs: list[fx.Node] = field(default_factory=list)


@dataclass(frozen=True)
class _Trail:
    """A way from the input of a region to a node.

    Attributes:
        steps: submodules and activations on the way.
        sums: sums on the way, each with the operand that is on it.
        weight: number of parameters on the way; of two ways into a sum, the lighter one is the shortcut.
    """

    steps: tuple[str, ...] = ()
    sums: tuple[tuple[fx.Node, fx.Node], ...] = ()
    weight: int = 0


def find_cuts(model: nn.Module, regions: dict[str, Region], example_inputs: Tensor | ExampleInputs) -> list[Cut]:
    """Every module that could become its shortcut, nested ones too, in network order."""
    n_calls: dict[str, int] = defaultdict(int)
    for region in regions.values():
        n_calls[region.path] += 1
    cuts = []
    for region in regions.values():
        once = n_calls[region.path] == 1 and region.path != ""
        if once and len(region.outputs) == 1 and region.inputs and any(is_sum(node) for node in region.nodes):
            cut = _Walk(model, regions, region).cut()
            if cut is not None:
                cuts.append(cut)
    calls = find_calls(model, [cut.branch.name for cut in cuts], example_inputs)
    return [replace(cut, branch=_as_called(cut.branch, calls[cut.branch.name])) for cut in cuts]


def _as_called(branch: ResidualBranch, call: Call) -> ResidualBranch:
    return replace(branch, is_plain=call.is_plain and call.returns == (), returns=call.returns or ())


def merge_cuts(cuts: list[Cut], additions: list[Cut]) -> list[Cut]:
    """Blocks of one residual sum as a whole, else what their sums add; both, where one contains the other."""
    whole = {node: cut for cut in cuts if len(cut.sums) == 1 for node in cut.sums}
    merged = list(cuts)
    for addition in additions:
        (node,) = addition.sums
        outer = whole.get(node)
        if outer is None:
            merged.append(addition)
        elif outer in merged:
            merged[merged.index(outer)] = replace(outer, instead=addition)
    return merged


def innermost(cuts: list[Cut]) -> list[Cut]:
    """The cuts that hold no other one, so that any choice of them can be made together."""
    names = [cut.branch.name for cut in cuts]
    return [cut for cut in cuts if not any(name.startswith(f"{cut.branch.name}.") for name in names)]


def find_regions(trace: Trace) -> dict[str, Region]:
    """The nodes of every call of every module, by the key that `torch.export` gives the call."""
    regions: dict[str, Region] = {}
    for node in trace.nodes:
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            regions.setdefault(key, Region(path)).nodes[node] = None
    sources = {node for node in trace.nodes if node in trace.states or node in trace.constants}
    for region in regions.values():
        read = {source: None for node in region.nodes for source in node.all_input_nodes}
        region.inputs = [node for node in read if node not in region.nodes and node not in sources]
        region.outputs = [node for node in region.nodes if any(user not in region.nodes for user in node.users)]
    return regions


def is_sum(node: fx.Node) -> bool:
    """A sum of two tensors of the result's shape."""
    operands = node.all_input_nodes
    if rule_key(node) != "aten.add" or len(operands) != 2 or node.kwargs:
        return False
    shapes = [item.meta["val"].shape for item in (node, *operands) if isinstance(item.meta.get("val"), Tensor)]
    return len(shapes) == 3 and shapes[0] == shapes[1] == shapes[2]


class _Walk:
    """Follows the ways from the input of one region to its output, node by node in execution order."""

    def __init__(self, model: nn.Module, regions: dict[str, Region], region: Region) -> None:
        self._model = model
        self._regions = regions
        self._region = region
        self._trails: dict[fx.Node, _Trail] = {node: _Trail() for node in region.inputs}
        for node in region.nodes:
            trail = self._through_sum(node) if is_sum(node) else self._through_step(node)
            if trail is not None:
                self._trails[node] = trail

    def cut(self) -> Cut | None:
        """The way to the output, if it passes a sum whose other operand has weights."""
        region = self._region
        trail = self._trails.get(region.outputs[0])
        if trail is None or not trail.sums or not _can_nest(trail.steps):
            return None
        layers = tuple(self._layers(trail.steps))
        branch = ResidualBranch(region.path, layers, trail.steps, len(region.inputs), tuple(self._readers()))
        return Cut(branch, dict(trail.sums)) if layers else None

    def _layers(self, kept: tuple[str, ...]) -> Iterator[str]:
        """Modules with weights in the region that do not stay."""
        stays = tuple(f"{self._region.path}.{step}" for step in kept)
        for path, module in self._model.get_submodule(self._region.path).named_modules(prefix=self._region.path):
            weights = any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
            if weights and not any(path == stay or path.startswith(f"{stay}.") for stay in stays):
                yield path

    def _readers(self) -> Iterator[str]:
        for user in self._region.inputs[0].users:
            if user in self._region.nodes and rule_key(user) in KINDS:
                yield module_path(user)

    def _through_sum(self, node: fx.Node) -> _Trail | None:
        """Over the lighter of the operands that lead back to the input."""
        found = [(self._trails[operand], operand) for operand in node.all_input_nodes if operand in self._trails]
        if not found:
            return None
        trail, operand = min(found, key=lambda item: (item[0].weight, len(item[0].steps)))
        return _Trail(trail.steps, (*trail.sums, (node, operand)), trail.weight)

    def _through_step(self, node: fx.Node) -> _Trail | None:
        """Through the smallest submodule that ends here, or an activation that is called as a function."""
        source = node.all_input_nodes[0] if node.all_input_nodes else node
        before = self._trails.get(source)
        if before is not None and self._changes_nothing(node, source, before):
            return before
        for key in reversed(list((node.meta.get("nn_module_stack") or {}).keys())):
            inner = self._regions[key]
            if inner is self._region:
                break
            if inner.outputs == [node] and len(inner.inputs) == 1:
                trail = self._trails.get(inner.inputs[0])
                return None if trail is None else self._extended(trail, inner.path)
        name = ACTIVATIONS.get(rule_key(node))
        return None if name is None or before is None else _Trail((*before.steps, name), before.sums, before.weight)

    def _extended(self, trail: _Trail, path: str) -> _Trail:
        weight = sum(parameter.numel() for parameter in self._model.get_submodule(path).parameters())
        return _Trail((*trail.steps, path.removeprefix(f"{self._region.path}.")), trail.sums, trail.weight + weight)

    def _changes_nothing(self, node: fx.Node, source: fx.Node, before: _Trail) -> bool:
        """Whether a node hands on what it is given: a conversion to the same type, a ReLU of what is never negative."""
        if rule_key(node) == "aten.relu" and not before.steps:
            return all(_is_nonnegative(item) for item in self._region.inputs)
        return rule_key(node) in KEEP_FRACTION and source.meta["val"].dtype == node.meta["val"].dtype


def _can_nest(steps: tuple[str, ...]) -> bool:
    """Whether the steps can run as nested sequences under their own paths: each once, those of one parent together."""
    paths = [step for step in steps if not step.startswith("nn.")]
    parents = [path.split(".")[0] for path in paths]
    runs = [parent for place, parent in enumerate(parents) if place == 0 or parents[place - 1] != parent]
    return len(set(paths)) == len(paths) and len(set(runs)) == len(runs)


def _is_nonnegative(node: fx.Node) -> bool:
    """Whether a value comes from a ReLU, perhaps through a max pooling; dropping blocks before it changes nothing."""
    while rule_key(node) == "aten.max_pool2d":
        node = node.all_input_nodes[0]
    return rule_key(node) == "aten.relu"


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
