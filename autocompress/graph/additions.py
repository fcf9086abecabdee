"""Finds parts of blocks that are only added to the stream (attention, feed-forward) and can be dropped one by one."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor, fx, nn

from autocompress.graph.branches import Call, Cut, Region, find_calls, is_sum
from autocompress.graph.flow import rule_key
from autocompress.graph.model_graph import ResidualBranch, Stub
from autocompress.graph.trace import ExampleInputs, Trace

CHECK = "aten._assert_tensor_metadata"
"""An op that only looks at a value."""


def find_additions(
    model: nn.Module, trace: Trace, regions: dict[str, Region], example_inputs: Tensor | ExampleInputs
) -> list[Cut]:
    """A cut for each residual sum whose one operand is made from the other one by modules that serve nothing else.

    Those modules become stubs: all but the last hand their first input on, the last gives zeros, and so the sum gives
    its other operand. Where that does not hold, because the code between them relies on sizes, stubs that keep them
    are tried instead. In network order.
    """
    n_calls = Counter(region.path for region in regions.values())
    found = []
    for node in trace.nodes:
        for stays, goes in itertools.permutations(node.all_input_nodes) if is_sum(node) else ():
            modules = _served(node, stays, goes, regions)
            if modules and all(n_calls[path] == 1 for path in modules) and _weight(model, modules):
                found.append((node, stays, modules))
                break
    paths = list(dict.fromkeys(path for _, _, modules in found for path in modules))
    calls = find_calls(model, paths, example_inputs)
    cuts = []
    for node, stays, modules in found:
        if any(calls[path].returns is None for path in modules):
            continue
        branch = _branch(model, modules, calls, [path for path in paths if path not in modules])
        sizes = {path: calls[path].sizes for path in modules}
        sized = replace(branch, stubs=tuple(replace(stub, sizes=sizes[stub.path]) for stub in branch.stubs))
        cuts.append(Cut(branch, {node: stays}, None if None in sizes.values() else Cut(sized, {node: stays})))
    return cuts


def _served(total: fx.Node, stays: fx.Node, goes: fx.Node, regions: dict[str, Region]) -> list[str]:
    """Paths of the modules, in order, whose every node only serves `goes`; none unless they read `stays`."""
    dead = _dead(total, goes)
    if not any(stays in node.all_input_nodes for node in dead):
        return []
    paths: dict[str, None] = {}
    last = None
    for node in sorted(dead):
        region = next((regions[key] for key in _stack(node) if _is_dead(regions[key], dead)), None)
        if region is not None:
            paths[region.path] = None
            last = region
    return list(paths) if last is not None and _ends(goes, last) else []


def _dead(total: fx.Node, goes: fx.Node) -> set[fx.Node]:
    """The nodes that nothing reads once the sum has lost its operand."""
    dead: set[fx.Node] = set()
    waiting = [goes]
    while waiting:
        node = waiting.pop()
        readers = [user for user in node.users if rule_key(user) != CHECK and not (node is goes and user is total)]
        if node.op == "call_function" and node not in dead and all(user in dead for user in readers):
            dead.add(node)
            waiting.extend(node.all_input_nodes)
    return dead


def _is_dead(region: Region, dead: set[fx.Node]) -> bool:
    return all(node in dead or rule_key(node) == CHECK for node in region.nodes)


def _stack(node: fx.Node) -> Iterable[str]:
    """Keys of the regions that a node is in, outermost first."""
    return (node.meta.get("nn_module_stack") or {}).keys()


def _ends(node: fx.Node, region: Region) -> bool:
    """Whether a value is what the region's module gives, perhaps through ops of one tensor."""
    while node not in region.nodes and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node in region.nodes


def _weight(model: nn.Module, paths: list[str]) -> int:
    return max(_n_weights(model, path) for path in paths)


def _n_weights(model: nn.Module, path: str) -> int:
    return sum(weight.numel() for weight in model.get_submodule(path).parameters() if weight.dim() > 1)


def _branch(model: nn.Module, modules: list[str], calls: dict[str, Call], others: list[str]) -> ResidualBranch:
    """A branch through these modules; `others` are those of the other branches."""
    stubs = tuple(Stub(path, path == modules[-1], calls[path].returns or ()) for path in modules)
    layers = [
        path
        for module in modules
        for path, inner in model.get_submodule(module).named_modules(prefix=module)
        if any(weight.dim() > 1 for weight in inner.parameters(recurse=False))
    ]
    return ResidualBranch(_name(model, modules, others), tuple(layers), stubs=stubs)


def _name(model: nn.Module, modules: list[str], others: list[str]) -> str:
    """The heaviest of the modules; where that is one layer, the module around all with weights, if it has no others."""
    heaviest = max(modules, key=lambda path: _n_weights(model, path))
    paths = [path.split(".") for path in modules if _n_weights(model, path)]
    places = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
    around = ".".join(names[0] for names in places)
    is_layer = len(paths) > 1 and not any(True for _ in model.get_submodule(heaviest).children())
    return around if is_layer and around and not any(path.startswith(f"{around}.") for path in others) else heaviest
