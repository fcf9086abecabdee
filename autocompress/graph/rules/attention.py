"""The rule of fused attention: heads go whole, a query group with its key and value."""

from __future__ import annotations

import numpy as np
from torch import fx

from autocompress.graph.flow import Flow, Rule, argument, shape_of
from autocompress.graph.labels import Dim, Dims, Fixed
from autocompress.graph.rules.elementwise import broadcast


def attention(node: fx.Node, flow: Flow) -> Dims:
    """`softmax(q k^T scale + mask) v`, shapes `(..., heads, length, size)`.

    The size of queries and keys is fixed unless the scale is given, because the default scale follows from it.
    """
    q, k, v = (flow.dims(argument(node, name)) for name in ("query", "key", "value"))
    shape = shape_of(node)
    if argument(node, "scale") is None:
        for dim in (q[-1], k[-1]):
            flow.labels.freeze(dim, "is the size of an attention head, which scales the scores")
    flow.labels.tie(q[-1], k[-1])
    flow.labels.tie(k[-2], v[-2])
    if len(q) > 2:
        flow.heads += [q[-3], k[-3], v[-3]]
        times = shape[-3] // shape_of(argument(node, "key"))[-3]
        k, v = (_repeat_heads(dims, times) for dims in (k, v))
    batch = shape[:-2]
    operands = [(dims[:-2], batch) for dims in (q, k, v)]
    mask = argument(node, "attn_mask")
    if mask is not None:
        scores = (*batch, shape[-2], shape_of(argument(node, "key"))[-2])
        broadcast([((*q[:-1], k[-2]), scores), (flow.dims(mask), shape_of(mask))], scores, flow)
    return (*broadcast(operands, batch, flow), q[-2], v[-1])


def _repeat_heads(dims: Dims, times: int) -> Dims:
    heads: Dim = dims[-3]
    return dims if isinstance(heads, Fixed) else (*dims[:-3], np.repeat(heads, times), *dims[-2:])


ATTENTION: dict[str, Rule] = {"aten.scaled_dot_product_attention": attention}
