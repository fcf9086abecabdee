"""Rules of ops that work slot by slot: the result's channels are those of the operands, broadcast."""

from __future__ import annotations

from torch import fx

from autocompress.graph.flow import ALONG, Flow
from autocompress.graph.labels import Dim, Dims, Fixed
from autocompress.graph.rules.arguments import argument, shape_of

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
