"""Rules of pooling, interpolation and padding: channels pass, the trailing spatial dimensions are resampled."""

from __future__ import annotations

import math

import numpy as np
from torch import fx

from autocompress.graph.flow import Flow, Rule, argument, axis, has_argument, shape_of
from autocompress.graph.labels import Dim, Dims, Fixed, NoRuleError

POOLS = "max_pool{n}d avg_pool{n}d adaptive_avg_pool{n}d adaptive_max_pool{n}d max_pool{n}d_with_indices"
UPSAMPLES = "linear1d bilinear2d bicubic2d nearest1d nearest2d nearest3d trilinear3d _nearest_exact2d"


def resample(rank: int) -> Rule:
    """A rule for ops over the last `rank` dimensions."""

    def rule(node: fx.Node, flow: Flow) -> Dims | list[Dims]:
        dims = flow.dims(node.args[0])
        for dim in dims[-rank:]:
            flow.labels.freeze(dim, f"is resampled by {node.target}")
        space = Fixed("meets a spatial dimension")
        result = (*dims[:-rank], *(space for _ in range(rank)))
        value = node.meta.get("val")
        return [result for _ in value] if isinstance(value, (tuple, list)) else result

    return rule


def pad(node: fx.Node, flow: Flow) -> Dims:
    """Channels may be padded with a constant: the pad keeps its width, the channels between can still go."""
    dims = list(flow.dims(node.args[0]))
    widths = argument(node, "pad")
    mode = argument(node, "mode") if has_argument(node, "mode") else "constant"
    for place in range(len(widths) // 2):
        before, after = widths[2 * place], widths[2 * place + 1]
        if before or after:
            where = len(dims) - 1 - place
            dims[where] = _padded(dims[where], before, after, mode, node, flow)
    return tuple(dims)


def _padded(dim: Dim, before: int, after: int, mode: str, node: fx.Node, flow: Flow) -> Dim:
    if isinstance(dim, Fixed):
        return dim
    if mode != "constant":
        flow.labels.freeze(dim, f"is padded by {node.target} in mode {mode!r}")
        return dim
    parts = [dim[max(-before, 0) : len(dim) - max(-after, 0)]]
    for width, place in ((before, 0), (after, len(dim))):
        pads = flow.labels.fresh(max(width, 0))
        flow.labels.freeze(
            pads, f"is padded with {width} constant channels by {node.target}, a width that the model fixes"
        )
        parts.insert(0 if place == 0 else len(parts), pads)
    flow.labels.freeze(dim[: max(-before, 0)], "is cropped at a fixed width")
    flow.labels.freeze(dim[len(dim) - max(-after, 0) :], "is cropped at a fixed width")
    return np.concatenate(parts)


def pixel_shuffle(node: fx.Node, flow: Flow) -> Dims:
    """`(C * r * r, H, W)` to `(C, H * r, W * r)`: the r * r inputs of an output channel go together."""
    dims = flow.dims(node.args[0])
    factor = argument(node, "upscale_factor")
    channels = dims[-3]
    if not isinstance(channels, Fixed):
        channels = flow.labels.tie_rows(channels.reshape(-1, factor * factor).T)
    return (*dims[:-3], channels, Fixed("meets a spatial dimension"), Fixed("meets a spatial dimension"))


def pixel_unshuffle(node: fx.Node, flow: Flow) -> Dims:
    """`(C, H * r, W * r)` to `(C * r * r, H, W)`: an input channel becomes r * r slots."""
    dims = flow.dims(node.args[0])
    factor = argument(node, "downscale_factor")
    channels = dims[-3]
    if not isinstance(channels, Fixed):
        channels = np.repeat(channels, factor * factor)
    if len(shape_of(node)) != len(dims):
        raise NoRuleError("rank changed")
    return (*dims[:-3], channels, Fixed("meets a spatial dimension"), Fixed("meets a spatial dimension"))


def windows(node: fx.Node, flow: Flow) -> Dims:
    """`x.unfold(dim, size, step)`: that dimension counts windows, and a new last one what is in them."""
    dims = list(flow.dims(node.args[0]))
    place = axis(argument(node, "dimension"), len(dims))
    flow.labels.freeze(dims[place], f"is cut into windows by {node.target}")
    dims[place] = Fixed("counts windows")
    return (*dims, Fixed("is a place in a window"))


def unfold(node: fx.Node, flow: Flow) -> Dims:
    """`(N, C, H, W)` to `(N, C * k * k, windows)`: a channel becomes a slot for each place of the kernel."""
    dims = flow.dims(node.args[0])
    channels = dims[-3]
    if not isinstance(channels, Fixed):
        channels = np.repeat(channels, math.prod(argument(node, "kernel_size")))
    return (*dims[:-3], channels, Fixed("counts windows"))


def fold(node: fx.Node, flow: Flow) -> Dims:
    """`(N, C * k * k, windows)` to `(N, C, H, W)`: the places of the kernel of a channel go together."""
    dims = flow.dims(node.args[0])
    channels = dims[-2]
    if not isinstance(channels, Fixed):
        channels = flow.labels.tie_rows(channels.reshape(-1, math.prod(argument(node, "kernel_size"))).T)
    return (*dims[:-2], channels, Fixed("meets a spatial dimension"), Fixed("meets a spatial dimension"))


SPATIAL: dict[str, Rule] = (
    {f"aten.{name}": resample(n) for n in (1, 2, 3) for name in POOLS.format(n=n).split()}
    | {f"aten.upsample_{name}": resample(int(name[-2])) for name in UPSAMPLES.split()}
    | {
        "aten.pad": pad,
        "aten.constant_pad_nd": pad,
        "aten.unfold": windows,
        "aten.im2col": unfold,
        "aten.col2im": fold,
        "aten.pixel_shuffle": pixel_shuffle,
        "aten.pixel_unshuffle": pixel_unshuffle,
    }
)
