"""Carries labels through a trace, with one rule per op and a freeze for every op without one; reads ops' arguments."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from autocompress.graph.labels import Dim, Dims, Fixed, Labels, NoRuleError, Slots
from autocompress.graph.trace import Trace, module_path, op_name

Value = Any
"""What a node holds: the `Dims` of a tensor, a list or tuple of values, or None for what is no tensor."""

PRODUCER, CONSUMER, ALONG = "producer", "consumer", "along"


@dataclass
class Flow:
    """The labels of every value of a trace, filled in execution order.

    Attributes:
        states: path of a parameter or buffer -> the labels of its dimensions, in order of first use.
        made: the same for all, used or not: tied tensors have one entry, and so the same channels.
        computed: weight that is computed (weight norm) -> the parameter whose dimensions it has.
        head_axes: view that splits channels -> the dimension of its result that counts attention heads; None in a
            survey, where a split gives labels to all its dimensions, so that `find_head_axes` sees where they lead.
        heads: dimensions that count heads where an attention reads them.
        splits: view -> dimension of its result -> labels: all of them in a survey, else those of heads.
        cuts: split or slice into equal parts -> the labels of the dimension that it cuts, one row for each part.
        blocks: views whose heads go together with equal blocks of the channels that their projection reads, because
            the user's code derives the size of a head from the width of the stream.
        by_number: parts of a split and rows of a shuffle are not tied slot by slot: what then holds only for some
            numbers of channels is for `by_number.py` to find out.
        shuffled: last view of a channel shuffle -> its dimensions, noted at its first one.
        roles: (path, dimension) -> whether a layer makes, reads or passes on the channels of that dimension.
    """

    trace: Trace
    labels: Labels = field(default_factory=Labels)
    values: dict[fx.Node, Value] = field(default_factory=dict)
    states: dict[str, Dims] = field(default_factory=dict)
    roles: dict[tuple[str, int], str] = field(default_factory=dict)
    made: dict[str, Dims] = field(default_factory=dict)
    computed: dict[fx.Node, fx.Node] = field(default_factory=dict)
    head_axes: dict[fx.Node, int] | None = field(default_factory=dict)
    heads: list[Dim] = field(default_factory=list)
    splits: dict[fx.Node, dict[int, Slots]] = field(default_factory=dict)
    cuts: dict[fx.Node, Slots] = field(default_factory=dict)
    blocks: frozenset[fx.Node] = frozenset()
    by_number: bool = False
    shuffled: dict[fx.Node, Dims] = field(default_factory=dict)

    def dims(self, arg: Any) -> Dims:
        """The labels of a tensor argument.

        Raises:
            NoRuleError: the argument is no tensor of the graph.
        """
        value = self.values.get(arg) if isinstance(arg, fx.Node) else None
        if not isinstance(value, tuple):
            raise NoRuleError(f"argument {arg!r} is not a plain tensor")
        if arg in self.trace.states:
            self.states.setdefault(self.trace.states[arg], value)
        return value

    def play(self, arg: Any, dim: int, role: str) -> None:
        """Notes the role of one dimension of an argument, where that is a parameter or buffer."""
        path = self.trace.states.get(self.computed.get(arg, arg)) if isinstance(arg, fx.Node) else None
        if path is not None:
            self.roles.setdefault((path, dim), role)


Rule = Callable[[fx.Node, Flow], Value]


def propagate(
    trace: Trace,
    rules: Mapping[str, Rule],
    head_axes: dict[fx.Node, int] | None,
    blocks: frozenset[fx.Node] = frozenset(),
    by_number: bool = False,
) -> Flow:
    """Runs the rule of every node; `rules` maps op names without overload ("aten.relu") to rules."""
    flow = Flow(trace, head_axes=head_axes, blocks=blocks, by_number=by_number)
    for node in trace.nodes:
        if node.op == "placeholder":
            flow.values[node] = _source(node, flow)
        elif node.op == "output":
            _freeze_inputs(node, flow, "is an output of the model")
        else:
            flow.values[node] = _apply(node, flow, rules)
    return flow


def find_head_axes(trace: Trace, rules: Mapping[str, Rule]) -> dict[fx.Node, int]:
    """Views that split channels into heads, and which dimension of their result counts the heads."""
    survey = propagate(trace, rules, None)
    component, _ = survey.labels.resolve()
    heads = {int(item) for dim in survey.heads if not isinstance(dim, Fixed) for item in component[dim]}
    axes: dict[fx.Node, int] = {}
    for node, places in survey.splits.items():
        found = [place for place, labels in places.items() if not heads.isdisjoint(component[labels].tolist())]
        if len(found) == 1:
            axes[node] = found[0]
    return axes


def _apply(node: fx.Node, flow: Flow, rules: Mapping[str, Rule]) -> Value:
    rule = rules.get(rule_key(node))
    reason = f"reaches {op_name(node)}, which has no rule" + _place(node)
    if rule is not None:
        try:
            return _checked(rule(node, flow), node)
        except NoRuleError as error:
            reason = f"reaches {op_name(node)}: {error}" + _place(node)
        except (IndexError, TypeError, ValueError) as error:  # an overload that the rule was not written for
            reason = f"reaches {op_name(node)}, which its rule does not cover ({error})" + _place(node)
    _freeze_inputs(node, flow, reason)
    return fixed(node.meta.get("val"), f"comes from {op_name(node)}, which has no rule for it" + _place(node))


def _checked(value: Value, node: fx.Node) -> Value:
    """The value, if it has the shape of the node's tensor: a rule that is wrong must not be believed."""
    result = node.meta.get("val")
    if isinstance(result, Tensor):
        pairs = zip(value, result.shape, strict=True)
        if any(not isinstance(dim, Fixed) and dim.size != size for dim, size in pairs):
            raise NoRuleError("its rule gives another shape")
    return value


def rule_key(node: fx.Node) -> str:
    """The op's name without its overload; in-place variants share the rule of the plain op."""
    name = op_name(node) if node.op == "call_function" else node.op
    if name.startswith("<"):
        return getattr(node.target, "__name__", name)
    name = ".".join(name.split(".")[:2])
    return name if name.endswith("__") else name.removesuffix("_")


def _place(node: fx.Node) -> str:
    path = module_path(node)
    return f" (in {path})" if path else ""


def _source(node: fx.Node, flow: Flow) -> Value:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    if node in flow.trace.states:
        path = flow.trace.states[node]
        if path not in flow.made:
            flow.made[path] = tuple(flow.labels.fresh(int(size)) for size in value.shape)
        return flow.made[path]
    what = "a constant tensor" if node in flow.trace.constants else f"the input {node.name!r}"
    return fixed(value, f"meets {what} of the model")


def fixed(value: Any, why: str) -> Value:
    """A value of the same structure whose every dimension is fixed."""
    if isinstance(value, Tensor):
        return tuple(Fixed(why) for _ in value.shape)
    if isinstance(value, (tuple, list)):
        return [fixed(item, why) for item in value]
    return None


def _freeze_inputs(node: fx.Node, flow: Flow, why: str) -> None:
    for source in node.all_input_nodes:
        if isinstance(flow.values.get(source), tuple) and len(flow.dims(source)) > 1:
            flow.play(source, 0, PRODUCER)  # so that a layer that only meets ops without rules is listed as frozen
        _freeze_value(flow.values.get(source), flow, why)


def _freeze_value(value: Value, flow: Flow, why: str) -> None:
    if isinstance(value, tuple):
        for dim in value:
            flow.labels.freeze(dim, why)
    elif isinstance(value, list):
        for item in value:
            _freeze_value(item, flow, why)


def argument(node: fx.Node, name: str) -> Any:
    """The argument of that name: given by position, by keyword, or the schema's default.

    Raises:
        NoRuleError: the op has no argument of that name, or it is neither given nor has a default.
    """
    for place, item in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if item.name != name:
            continue
        if place < len(node.args):
            return node.args[place]
        if name in node.kwargs:
            return node.kwargs[name]
        if item.has_default_value():
            return item.default_value
    raise NoRuleError(f"no argument {name!r}")


def has_argument(node: fx.Node, name: str) -> bool:
    """Whether the op's schema has an argument of that name."""
    return any(item.name == name for item in node.target._schema.arguments)  # type: ignore[union-attr]


def shape_of(node: Any) -> tuple[int, ...]:
    """The shape of a node's tensor for the example inputs.

    Raises:
        NoRuleError: the node holds no tensor, or its shape depends on data.
    """
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor):
        raise NoRuleError(f"{node!r} is not a tensor")
    try:
        return tuple(operator.index(size) for size in value.shape)
    except Exception as error:  # an unbacked symbolic size raises a private torch class
        raise NoRuleError("its shape depends on data") from error


def axis(dim: Any, rank: int) -> int:
    """A dimension counted from the front.

    Raises:
        NoRuleError: it is not an integer.
    """
    if not isinstance(dim, int):
        raise NoRuleError(f"dimension {dim!r} is not an integer")
    return dim % rank if rank else 0
