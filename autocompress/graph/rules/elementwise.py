"""Rules of ops that work slot by slot, of ops that make tensors, of tuple access, and of assertions."""

from __future__ import annotations

from typing import Any

from torch import fx

from autocompress.graph.flow import ALONG, Flow, Value, argument, fixed, rule_key, shape_of
from autocompress.graph.labels import Dim, Dims, Fixed, NoRuleError

UNARY = """
    relu relu6 gelu silu sigmoid tanh hardtanh hardswish hardsigmoid hardshrink softplus elu selu celu mish
    leaky_relu log_sigmoid threshold softsign abs neg exp expm1 log log1p log2 sqrt rsqrt square reciprocal sin cos
    tan asin acos atan sinh cosh erf erfc floor ceil round trunc sign sgn frac isnan isinf isfinite logical_not
    bitwise_not clamp clamp_min clamp_max clip dropout feature_dropout alpha_dropout native_dropout clone detach
    alias contiguous to _to_copy type_as zero nan_to_num rrelu positive lift_fresh_copy fill logit float
"""
N_ARY = """
    add sub rsub mul div true_divide floor_divide pow fmod remainder maximum minimum atan2 eq ne lt le gt ge
    logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor where masked_fill lerp addcmul addcdiv
    copy __and__ __or__ __xor__
"""


def broadcast(operands: list[tuple[Dims, tuple[int, ...]]], shape: tuple[int, ...], flow: Flow) -> Dims:
    """Ties operands, given as `(dims, sizes)`, dimension by dimension from the right; dims of the result of `shape`."""
    result: list[Dim] = []
    for place in range(-len(shape), 0):
        size = shape[place]
        full = [dims[place] for dims, sizes in operands if len(sizes) >= -place and sizes[place] == size]
        for other in full[1:]:
            flow.labels.tie(full[0], other)
        labelled = [dim for dim in full if not isinstance(dim, Fixed)]
        result.append(labelled[0] if labelled else full[0] if full else Fixed("meets a broadcast dimension"))
    return tuple(result)


def elementwise(node: fx.Node, flow: Flow) -> Dims:
    """Every tensor operand is broadcast against the others."""
    return broadcast([(flow.dims(item), shape_of(item)) for item in node.all_input_nodes], shape_of(node), flow)


def prelu(node: fx.Node, flow: Flow) -> Dims:
    """One slope for all channels, or one for each channel in dimension 1."""
    dims, weight = flow.dims(argument(node, "self")), argument(node, "weight")
    slope = flow.dims(weight)
    if len(slope) == 1 and shape_of(weight)[0] > 1:
        flow.labels.tie(dims[1], slope[0])
        flow.play(weight, 0, ALONG)
    return dims


def glu(node: fx.Node, flow: Flow) -> Dims:
    """Halves are multiplied, so that channel i of both goes together."""
    dims = list(flow.dims(argument(node, "self")))
    place = argument(node, "dim")
    whole = dims[place]
    if not isinstance(whole, Fixed):
        dims[place] = flow.labels.tie_rows(whole.reshape(2, -1))
    return tuple(dims)


ELEMENTWISE = {f"aten.{name}": elementwise for name in (UNARY + N_ARY).split()} | {
    "aten.prelu": prelu,
    "aten._prelu_kernel": prelu,
    "aten.glu": glu,
}


UNIFORM = "zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full scalar_tensor empty empty_like"
COUNTED = "arange linspace eye tril_indices triu_indices"


def uniform(node: fx.Node, flow: Flow) -> Dims:
    """All slots are equal, so that any of them can go; whether the size follows is found by running a pruned copy."""
    return tuple(flow.labels.fresh(size, uniform=True) for size in shape_of(node))


def counted(node: fx.Node, flow: Flow) -> Value:
    """Slots differ and the number of them is the user's."""
    return fixed(node.meta.get("val"), f"meets a tensor of fixed size made by {rule_key(node)}")


def getitem(node: fx.Node, flow: Flow) -> Any:
    """One item of a tuple of values."""
    values = flow.values[node.all_input_nodes[0]]
    if not isinstance(values, list):
        raise NoRuleError("the value is not a tuple of tensors")
    return values[node.args[1]]  # type: ignore[index]


def nothing(node: fx.Node, flow: Flow) -> None:
    """Checks and sizes hold no tensor; what they compare is checked again by running a pruned copy."""


FACTORY = (
    {f"aten.{name}": uniform for name in UNIFORM.split()}
    | {f"aten.{name}": counted for name in COUNTED.split()}
    | {
        "getitem": getitem,
        "aten._assert_tensor_metadata": nothing,
        "aten._assert_async": nothing,
        "aten.sym_size": nothing,
    }
)
