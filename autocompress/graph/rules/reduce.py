"""Rules of ops that reduce or normalise over dimensions, and of matrix products."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from autocompress.graph.flow import CONSUMER, PRODUCER, Flow, Rule, argument, axis, has_argument, rule_key, shape_of
from autocompress.graph.labels import Dim, Dims, Fixed, NoRuleError
from autocompress.graph.rules.elementwise import broadcast, elementwise

ALIGNED_BYTES = 16
"""What the rows of matrices in a grouped product are multiples of."""


def reduce(node: fx.Node, flow: Flow) -> Dims:
    """Sum, mean, extremes: reduced channels are taken over those that are left."""
    dims = flow.dims(node.args[0])
    gone = reduced_dims(node, len(dims))
    keep = bool(argument(node, "keepdim")) if has_argument(node, "keepdim") else False
    return _drop(dims, gone, keep)


def reduced_dims(node: fx.Node, rank: int) -> set[int]:
    """The dimensions that a reduction, softmax or layer norm runs over."""
    if has_argument(node, "normalized_shape"):
        return set(range(rank - len(argument(node, "normalized_shape")), rank))
    name = next((item for item in ("dim", "dims") if has_argument(node, item)), None)
    given = argument(node, name) if name is not None else None
    if given is None or given == []:
        return set(range(rank))
    return {axis(item, rank) for item in (given if isinstance(given, (list, tuple)) else [given])}


def _drop(dims: Dims, gone: set[int], keep: bool) -> Dims:
    single = Fixed("meets a reduced dimension")
    if keep:
        return tuple(single if place in gone else dim for place, dim in enumerate(dims))
    return tuple(dim for place, dim in enumerate(dims) if place not in gone)


def norm(node: fx.Node, flow: Flow) -> Dims:
    """A vector norm, to which zeros add nothing unless its order is negative."""
    order = argument(node, "ord" if has_argument(node, "ord") else "p")
    if isinstance(order, (int, float)) and order < 0:
        raise NoRuleError(f"a norm of negative order {order}")
    return reduce(node, flow)


def reduce_fixed(node: fx.Node, flow: Flow) -> Dims | list[Dims]:
    """Reductions whose result counts or picks slots: the reduced dimension keeps its size."""
    if has_argument(node, "other"):
        return elementwise(node, flow)
    dims = flow.dims(node.args[0])
    gone = reduced_dims(node, len(dims))
    for place in gone:
        flow.labels.freeze(dims[place], f"is reduced by {node.target}, which depends on each single slot")
    result = _drop(dims, gone, bool(argument(node, "keepdim")) if has_argument(node, "keepdim") else False)
    value = node.meta.get("val")
    return [result for _ in value] if isinstance(value, (tuple, list)) else result


def along(why: str) -> Rule:
    """A rule for ops that keep the shape and mix slots along one dimension in their order."""

    def rule(node: fx.Node, flow: Flow) -> Dims:
        dims = flow.dims(node.args[0])
        for place in reduced_dims(node, len(dims)):
            flow.labels.freeze(dims[place], why)
        return dims

    return rule


def softmax(node: fx.Node, flow: Flow) -> Dims:
    """Normalised over the channels that are left; where it looks like attention, dimension -3 counts heads."""
    dims = flow.dims(node.args[0])
    if len(dims) >= 3 and reduced_dims(node, len(dims)) == {len(dims) - 1}:
        flow.heads.append(dims[-3])
    return dims


def matmul(node: fx.Node, flow: Flow) -> Dims:
    """Batched matrix product: contracted dimensions go together, batch dimensions broadcast.

    Parameters on the right, as in `x @ weight` or `x @ weight.T`, make channels as a linear layer does.
    """
    first, second = node.args[0], node.args[1]
    a, b = flow.dims(first), flow.dims(second)
    if not a or not b:
        raise NoRuleError("a product needs vectors or matrices")
    flow.labels.tie(a[-1], b[-2] if len(b) > 1 else b[0])
    if len(b) > 1:
        _play_weight(second, len(b), flow)
    tail: list[Dim] = [*a[-2:-1], *(b[-1:] if len(b) > 1 else ())]
    batch = shape_of(node)[: len(shape_of(node)) - len(tail)]
    heads = [(a[:-2], shape_of(first)[:-2]), (b[:-2], shape_of(second)[:-2])]
    return (*broadcast(heads, batch, flow), *tail)


def _play_weight(weight: object, rank: int, flow: Flow) -> None:
    """The right side of a product reads its last dimension but one and makes its last; turned, the other way round."""
    read, made = rank - 2, rank - 1
    if isinstance(weight, fx.Node) and _is_turned(weight, rank):
        weight, read, made = weight.args[0], made, read
    flow.play(weight, read, CONSUMER)
    flow.play(weight, made, PRODUCER)


def _is_turned(node: fx.Node, rank: int) -> bool:
    """Whether a value is another one with its last two dimensions swapped."""
    name = rule_key(node)
    if name == "aten.transpose":
        return {axis(place, rank) for place in node.args[1:3]} == {rank - 2, rank - 1}
    return name == "aten.mT" or (name in ("aten.t", "aten.numpy_T") and rank == 2)


def grouped_product(node: fx.Node, flow: Flow) -> Dims:
    """Rows of a matrix in consecutive blocks, each times a matrix of its own from a stack: a mixture of experts.

    Its kernels want rows of whole 16 bytes, so that as many consecutive channels go together.
    """
    first, second = node.args[0], node.args[1]
    a, b = flow.dims(first), flow.dims(second)
    if len(a) != 2 or len(b) != 3:
        raise NoRuleError("no rows times a stack of matrices")
    flow.labels.freeze(b[0], "counts the experts")
    flow.labels.tie(a[1], b[1])
    for dim in (a[1], b[1], b[2]):
        size = ALIGNED_BYTES // node.meta["val"].element_size()
        if not isinstance(dim, Fixed) and dim.size % size == 0:
            flow.labels.tie_rows(dim.reshape(-1, size).T)
    _play_weight(second, 3, flow)
    return (a[0], b[2])


def baddbmm(node: fx.Node, flow: Flow) -> Dims:
    """`beta * input + alpha * (a @ b)`, batched."""
    first, second = argument(node, "batch1"), argument(node, "batch2")
    a, b = flow.dims(first), flow.dims(second)
    flow.labels.tie(a[-1], b[-2])
    _play_weight(second, len(b), flow)
    batch = broadcast([(a[:1], shape_of(first)[:1]), (b[:1], shape_of(second)[:1])], shape_of(node)[:1], flow)
    added = argument(node, "self")
    product = ((*batch, a[-2], b[-1]), shape_of(node))
    return broadcast([product, (flow.dims(added), shape_of(added))], shape_of(node), flow)


def einsum(node: fx.Node, flow: Flow) -> Dims:
    """Equal letters go together; a parameter makes the channels of letters that it alone brings into the result."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    if "..." in equation or "->" not in equation:
        raise NoRuleError(f"the equation {equation!r} is not spelled out")
    left, right = equation.split("->")
    terms = left.split(",")
    seen: dict[str, Dim] = {}
    for at, (letters, operand) in enumerate(zip(terms, operands, strict=True)):  # type: ignore[arg-type]
        others = {letter for place, term in enumerate(terms) if place != at for letter in term}
        for place, (letter, dim) in enumerate(zip(letters, flow.dims(operand), strict=True)):
            flow.labels.tie(seen.setdefault(letter, dim), dim)
            if isinstance(seen[letter], Fixed):
                seen[letter] = dim
            if letter not in others or letter not in right:
                flow.play(operand, place, PRODUCER if letter in right else CONSUMER)
    return tuple(seen[letter] for letter in right)


def _table(names: str, rule: Callable[[fx.Node, Flow], object]) -> dict[str, Rule]:
    return {f"aten.{name}": rule for name in names.split()}


REDUCE: dict[str, Rule] = {
    **_table("sum mean amax amin logsumexp var std", reduce),
    **_table("argmax argmin max min any all prod median topk", reduce_fixed),
    **_table("norm linalg_vector_norm", norm),
    **_table("softmax log_softmax _softmax _log_softmax", softmax),
    **_table("cumsum cumprod flip roll sort", along("is mixed in the order of its slots")),
    **_table("matmul bmm mm", matmul),
    **_table("_grouped_mm", grouped_product),
    "transformers.grouped_mm_fallback": grouped_product,
    "aten.baddbmm": baddbmm,
    "aten.einsum": einsum,
}
