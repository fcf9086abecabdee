"""The graph of a model as data: layers, channel groups, residual branches, and frozen parts with reasons."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Coupling:
    """One dimension of one parameter or buffer that loses entries when its group loses channels.

    Attributes:
        tensor: dotted path of the parameter or buffer, as in `state_dict()`.
        dim: the dimension that shrinks.
        slots: for each channel of the group, the indices along `dim` that go with it.
        kept: of a group with `sizes`, for each of them the indices that stay, in their new order.
    """

    tensor: str
    dim: int
    slots: tuple[tuple[int, ...], ...]
    kept: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class SizeAttribute:
    """An integer that the user's own module keeps, such as a number of heads, and that follows a channel group.

    Attributes:
        module: path of the module.
        name: of the attribute.
        step: how much smaller it gets with each removed channel.
        place: of the integer, where the attribute is a tuple that holds it.
    """

    module: str
    name: str
    step: int
    place: int | None = None


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that must be removed together: removing channel i removes slot i of every coupling.

    Attributes:
        name: path of the root layer, the first in network order that produces these channels.
        n_channels: how many channels can be chosen from.
        couplings: every (tensor, dim) touched, producers first.
        producers: paths of the layers whose outputs these channels are.
        consumers: paths of the layers that read them.
        attributes: integers of the user's modules that must follow, found by the check of the group.
        sizes: () where any channels may go. Else the group goes by number: these are the numbers of channels, largest
            first, that it may be cut to, and which slots stay is said by `Coupling.kept`. By convention channels 0 to
            n - 1 are then said to be removed.
    """

    name: str
    n_channels: int
    couplings: tuple[Coupling, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    attributes: tuple[SizeAttribute, ...] = ()
    sizes: tuple[int, ...] = ()

    def nearest(self, n_removed: int) -> int:
        """The number of channels that can be removed nearest to the given one; of equals the smaller, never all."""
        if not self.sizes:
            return min(n_removed, self.n_channels - 1)
        possible = [self.n_channels - size for size in (self.n_channels, *self.sizes)]
        return min(possible, key=lambda n: (abs(n - n_removed), n))

    def gone(self, coupling: Coupling, channels: Collection[int]) -> set[int]:
        """Indices along the dimension of one of its couplings that go with these channels."""
        if not self.sizes or not channels:
            return {slot for channel in channels for slot in coupling.slots[channel]}
        return {slot for slots in coupling.slots for slot in slots}.difference(self.order(coupling, channels) or ())

    def order(self, coupling: Coupling, channels: Collection[int]) -> tuple[int, ...] | None:
        """Where the group goes by number, the indices along a dimension that stay, in their new order; else None."""
        if not self.sizes or not channels:
            return None
        return coupling.kept[self.sizes.index(self.n_channels - len(channels))]


@dataclass(frozen=True)
class Stub:
    """The replacement of a module that a dropped branch ran through.

    Attributes:
        path: of the module.
        is_last: it gives zeros, so that nothing is added to the stream; others hand their first input on.
        returns: () where the module returns one tensor, else one word for each item of its tuple: "stream" for that
            tensor, "argument NAME" for an argument that is handed on, "nothing" for None.
        sizes: None for what `is_last` says. Else the code between the modules relies on their sizes, so that all give
            zeros: the last a single one, which fits any stream, others of their first input's shape but for these, as
            (dimension, size).
    """

    path: str
    is_last: bool
    returns: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class ResidualBranch:
    """A module whose residual branch can be removed, so that only its shortcut remains.

    Attributes:
        name: path of the module that holds the branch (the residual block).
        layers: paths of the layers that go with it.
        shortcut: what stands on the shortcut, in order: paths of submodules within the module, and names of torch.nn
            activations as "nn.ReLU"; () when the input passes as it is.
        n_inputs: how many tensors the module is called with; the first one passes.
        stubs: where the branch is not a whole module but what a module's forward adds to its stream (attention in a
            transformer block): the modules it runs through, in order; `name` is the heaviest of them.
        readers: paths of the layers in it that read that first input themselves.
        is_plain: the module is called with one argument, by position, and returns one tensor.
        returns: what else it returns, as in `Stub`.
    """

    name: str
    layers: tuple[str, ...]
    shortcut: tuple[str, ...] = ()
    n_inputs: int = 1
    readers: tuple[str, ...] = ()
    stubs: tuple[Stub, ...] = ()
    is_plain: bool = True
    returns: tuple[str, ...] = ()

    @property
    def gone(self) -> tuple[str, ...]:
        """Paths of the modules that are replaced."""
        return tuple(stub.path for stub in self.stubs) or (self.name,)


@dataclass(frozen=True)
class Layer:
    """One weight layer, called exactly once; which knobs take it follows from its kind.

    Attributes:
        path: dotted module path.
        kind: "linear", "conv1d", "conv2d", "conv3d", "embedding", "lstm" or "gru".
        weight_shape: shape of its weight; of a recurrent layer, which has several, that of `weight_hh_l0`.
        n_params: weight and bias entries.
        n_macs: multiply-accumulates for one sample of the example inputs.
        norm: path of the batch norm that alone reads this layer's output, if there is one.
        relu: True when a ReLU, or another cut at zero from below (ReLU6, clamp), alone reads the output (after the
            norm).
        ceiling: what that ReLU cuts off at from above (6 for ReLU6), if it does.
        feeds: paths of the layers that read the output (after norm and ReLU, also through ops that commute
            with quantization: reshape, flatten, dropout in evaluation, max pooling); only meaningful
            when `feeds_only_layers`.
        feeds_only_layers: True when nothing else reads that output.
        groups: of a grouped convolution; 1 otherwise.
        stride: of a convolution, for each spatial dimension; () otherwise.
        input_shapes: of a recurrent layer, for each of its levels the shape of its input weights, those of both
            directions stacked; () otherwise.
        own_forward: it is a subclass of torch's layer with a forward of its own, or its weight is computed; it takes
            bits, but neither ranks nor sparsity.
        computed_weight: what it multiplies by is computed from its parameters (standardised, normed, parametrised).
    """

    path: str
    kind: str
    weight_shape: tuple[int, ...]
    n_params: int
    n_macs: int
    norm: str | None = None
    relu: bool = False
    feeds: tuple[str, ...] = ()
    feeds_only_layers: bool = False
    groups: int = 1
    stride: tuple[int, ...] = ()
    input_shapes: tuple[tuple[int, int], ...] = ()
    ceiling: float | None = None
    own_forward: bool = False
    computed_weight: bool = False


@dataclass(frozen=True)
class IntegerOp:
    """An op without weights that engines compute on integers, where what it reads and what it gives is rounded.

    Attributes:
        name: of its own.
        kind: "add", "concat", "mul", "pool", "sigmoid", "silu" or "leaky_relu".
        module: path of the module whose forward calls it.
        sources: for each tensor that it reads, the path of the layer or the name of the op that makes it, as far as
            only values are moved in between; "" for anything else.
        feeds: paths of the layers that read its output, likewise.
        feeds_others: something reads it that is neither a layer nor such an op.
        site: path of the module whose output that is, where it can be rounded; "" where there is none.
        relu: a ReLU alone reads the output.
        ceiling: what that ReLU cuts off at from above, if it does.
    """

    name: str
    kind: str
    module: str
    sources: tuple[str, ...]
    feeds: tuple[str, ...] = ()
    feeds_others: bool = False
    site: str = ""
    relu: bool = False
    ceiling: float | None = None


@dataclass(frozen=True)
class Frozen:
    """A part that cannot be compressed, with the reason for the user.

    Attributes:
        name: path of a layer, parameter or would-be channel group.
        what: "channels", "branch" or "layer": the knob that is not offered.
        reason: one sentence; names the op where an op without a rule is the cause.
        n_places: how many parameters or layers it stands for, itself counted.
    """

    name: str
    what: str
    reason: str
    n_places: int = 1


@dataclass(frozen=True)
class ModelGraph:
    """The result of `inspect_model`; all tuples are in network order."""

    layers: tuple[Layer, ...]
    groups: tuple[ChannelGroup, ...]
    branches: tuple[ResidualBranch, ...]
    frozen: tuple[Frozen, ...]
    n_params: int
    n_macs: int
    ops: tuple[IntegerOp, ...] = ()

    def layer(self, path: str) -> Layer:
        """The layer of that path (KeyError if there is none)."""
        for item in self.layers:
            if item.path == path:
                return item
        raise KeyError(path)

    def group(self, name: str) -> ChannelGroup:
        """The channel group of that name (KeyError if there is none)."""
        for item in self.groups:
            if item.name == name:
                return item
        raise KeyError(name)
