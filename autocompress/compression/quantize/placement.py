"""Replaces layers by rounded counterparts, and decides where activations are rounded.

Where a quantizer stands follows the integer kernels: a convolution with its batch norm and ReLU is one unit, whose
input, weight and output are rounded; an output that only feeds 8-bit layers is covered by their input quantizers. A
residual block whose layers are all 8-bit rounds its input once, for its shortcut too, so that the sum at its end adds
what is integer already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from autocompress.compression.quantize.activations import ActivationQuantizer, BFloat16Activations, DynamicQuantizer
from autocompress.compression.quantize.integer_ops import Surroundings, active_ops, round_outputs_
from autocompress.compression.quantize.layers import LAYERS, QuantizedLayer
from autocompress.compression.quantize.own_forward import (
    InterceptedLayer,
    intercepted,
    plain_class,
    quantized_norm,
)
from autocompress.compression.quantize.weights import (
    HALF_RANGE_MAX,
    INT8_MAX,
    BFloat16WeightQuantizer,
    CodebookQuantizer,
    GroupwiseInt4Quantizer,
    PerChannelInt8Quantizer,
    WeightQuantizer,
)
from autocompress.devices import device_of
from autocompress.errors import CompressionError
from autocompress.graph import Layer, ResidualBranch
from autocompress.space.candidate import FULL_BITS, HALF_BITS, INT8_BITS, PRECISIONS, Precision

_WEIGHTS_ONLY = (nn.Embedding, nn.RNNBase)
"""Layers whose inputs are indices, or rounded by the kernel itself."""

_INTEGER_KINDS = frozenset({"linear", "conv1d", "conv2d"})
"""Layers that give integers where their output is rounded."""

_MAKERS: dict[Precision, Callable[[int, int], WeightQuantizer]] = {
    HALF_BITS: lambda n_channels, n_inputs: BFloat16WeightQuantizer(),
    INT8_BITS: lambda n_channels, n_inputs: PerChannelInt8Quantizer(n_channels),
    "8w": lambda n_channels, n_inputs: PerChannelInt8Quantizer(n_channels),
    "4w": GroupwiseInt4Quantizer,
    **{bits: lambda n_channels, n_inputs, bits=bits: CodebookQuantizer(n_channels, bits) for bits in range(2, 8)},  # type: ignore[misc]
}


@dataclass(frozen=True)
class WeightGrid:
    """How int8 weights are rounded.

    Attributes:
        rule: "mse" takes the scales at which they change least; else from the largest weight.
        half_range: codes of layers that read integers stay within [-63, 63]; see `HALF_RANGE_MAX`.
    """

    rule: str = "minmax"
    half_range: bool = False


_FULL_GRID = WeightGrid()
NOTHING_AROUND = Surroundings()


def quantize_(
    model: nn.Module,
    layers: Sequence[Layer],
    bits: Mapping[str, Precision],
    around: Surroundings = NOTHING_AROUND,
    weight_grid: WeightGrid = _FULL_GRID,
    round_before_sums: bool = True,
) -> None:
    """Replaces the named layers of `model` by rounded counterparts, in place; `calibrate_` must follow.

    Args:
        model: after pruning and factorizing; all parts of a factorized layer are rounded.
        layers: the layers of the uncompressed model's graph, which say what stands next to what.
        bits: layer path -> precision. Other layers stay as they are.
        around: what else that graph has.
        weight_grid: of int8 weights.
        round_before_sums: False leaves out, but writes into files, the rounding of what a sum within an all-8-bit block
            reads, as a runtime does that computes convolution, sum and the next rounding in one kernel.

    Raises:
        CompressionError: a precision that there is not, a layer type without a rounded counterpart, or weights that
            are not finite.
    """
    for path, width in bits.items():
        if width not in PRECISIONS or width == FULL_BITS:
            raise CompressionError(f"weight_bits must be one of {list(PRECISIONS)}, but layer {path!r} has {width!r}")
    integer = {path for path, width in bits.items() if width == INT8_BITS}
    rounding = integer - {layer.path for layer in layers if layer.kind == "embedding"}  # those read row numbers
    whole = [
        branch
        for branch in around.branches
        if branch.readers and branch.n_inputs == 1 and integer.issuperset(branch.layers)
        if rounding.issuperset(branch.readers)
    ]
    computing = {layer.path for layer in layers if layer.path in rounding and layer.kind in _INTEGER_KINDS}
    ops = active_ops(around, computing, whole, model)
    read_by_ops = {source for op in ops for source in op.sources}
    covered = round_outputs_(model, ops, computing, whole) | _round_block_inputs_(model, whole)
    inner = {path for branch in whole for path in branch.layers}
    for layer in layers:
        if layer.path not in bits:
            continue
        parts = [layer.path] if layer.own_forward else _parts(model, layer.path)
        for path in parts:
            _to_counterpart(model, path, bits[layer.path], weight_grid, layer)
        if layer.path in covered and layer.path in computing:
            first = model.get_submodule(parts[0])
            assert isinstance(first, QuantizedLayer)
            first.input_quantizer, first.input_grid = None, (covered[layer.path],)
        if layer.path in integer and not isinstance(model.get_submodule(parts[-1]), _WEIGHTS_ONLY):
            quantizer = _round_output_(model, layer, parts[-1], integer, layer.path in read_by_ops)
            if quantizer is not None and layer.path in inner and not layer.relu:
                quantizer.applied = round_before_sums
        last = model.get_submodule(parts[-1])
        if isinstance(last, QuantizedLayer) and layer.norm is not None:
            last.norm = (model.get_submodule(layer.norm),)
    _note_ceilings_(model, layers, rounding & bits.keys())


def _note_ceilings_(model: nn.Module, layers: Sequence[Layer], rounding: set[str]) -> None:
    """Lets what rounds the inputs of layers know where the ReLU6 before them cuts off."""
    for layer in layers:
        for path in rounding.intersection(layer.feeds if layer.ceiling is not None else ()):
            for quantizer in _first_rounded(model, path).input_grid:
                quantizer.ceiling = layer.ceiling


def _first_rounded(model: nn.Module, path: str) -> QuantizedLayer:
    """A rounded layer, or the first of the rounded layers that it was split into."""
    return next(part for part in model.get_submodule(path).modules() if isinstance(part, QuantizedLayer))


def rounded(weight: Tensor, precision: Precision) -> Tensor:
    """A weight at the values that a layer of this precision stores; same shape."""
    quantizer = _MAKERS[precision](weight.shape[0], weight[0].numel()).to(weight.device)
    quantizer.eval().refresh(weight)
    return quantizer.rounded(weight.detach())


def _round_block_inputs_(model: nn.Module, whole: Iterable[ResidualBranch]) -> dict[str, ActivationQuantizer]:
    """Rounds the input of each block whose layers are all integer; layers that thus read rounded values -> by what."""
    covered: dict[str, ActivationQuantizer] = {}
    for branch in whole:
        block = model.get_submodule(branch.name)
        block.input_quantizer = quantizer = ActivationQuantizer().to(device_of(block))
        block.register_forward_pre_hook(_round_input, with_kwargs=True)
        covered |= dict.fromkeys(branch.readers, quantizer)
    return covered


def _round_input(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Rounds the only tensor that the block is called with, whether it has a name or not."""

    def rounded(value: Any) -> Any:
        return module.input_quantizer(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(rounded, args)), {name: rounded(value) for name, value in kwargs.items()}


def _round_output_(
    model: nn.Module, layer: Layer, last: str, integer: set[str], must: bool
) -> ActivationQuantizer | None:
    """Rounds what a unit gives; unless it must, not where its readers' own quantizers stand there."""
    if not must and (layer.kind == "linear" or (layer.feeds_only_layers and integer.issuperset(layer.feeds))):
        return None  # a float output costs an integer linear nothing
    end = layer.norm if layer.norm is not None else last
    if layer.norm is not None:
        _swap_class(model, end, quantized_norm(type(model.get_submodule(end))))
    module = model.get_submodule(end)
    quantizer = ActivationQuantizer(layer.relu, layer.ceiling).to(device_of(module))
    module.output_quantizer = quantizer
    return quantizer


def _parts(model: nn.Module, path: str) -> list[str]:
    """The layer itself, or the layers in the module that a factorized layer has become."""
    within = model.get_submodule(path).named_modules(prefix=path)
    return [name for name, module in within if type(module) in LAYERS] or [path]


def _to_counterpart(model: nn.Module, path: str, width: Precision, weight_grid: WeightGrid, layer: Layer) -> None:
    """Swaps a layer for its rounded class, which adds quantizers and keeps parameters, buffers and hooks."""
    module = model.get_submodule(path)
    counterpart = intercepted(type(module)) if layer.own_forward else LAYERS.get(type(module))
    if counterpart is None:
        known = ", ".join(kind.__name__ for kind in LAYERS)
        raise CompressionError(
            f"{width} bits are for {known}, but {path!r} is a {type(module).__name__}; leave it at 32 bits"
        )
    swapped = _swap_class(model, path, counterpart)
    assert isinstance(swapped, QuantizedLayer)
    swapped.input_quantizer = swapped.output_quantizer = None
    swapped.input_grid, swapped.norm = (), ()
    swapped.reads_dynamically = width == INT8_BITS and isinstance(module, nn.LSTM)
    if swapped.reads_dynamically:
        swapped.input_quantizer = DynamicQuantizer(0 if module.batch_first else 1)
    if width == INT8_BITS and not isinstance(module, _WEIGHTS_ONLY):
        swapped.input_quantizer = grid = ActivationQuantizer().to(device_of(module))
        swapped.input_grid = (grid,)
    elif width == HALF_BITS and not isinstance(module, _WEIGHTS_ONLY):
        swapped.input_quantizer = BFloat16Activations()
    if isinstance(swapped, InterceptedLayer):
        swapped.computed_weight = layer.computed_weight
        swapped.seen_weight = swapped.stored_weight = None
    swapped.weight_quantizers = nn.ModuleDict()
    for name, weight in _weights(module, layer).items():
        if not bool(weight.isfinite().all()):
            raise CompressionError(
                f"weights must be finite to be quantized, but {path}.{name} has NaN or infinity; "
                "check the model or the fine-tune that made it"
            )
        # the gates of a recurrent layer are stored in another order than here: where only weights are rounded, and
        # that finely, one scale serves them all
        n_channels = (
            1
            if isinstance(module, nn.RNNBase) and width in (INT8_BITS, "8w") and not swapped.reads_dynamically
            else weight.shape[0]
        )
        quantizer = _MAKERS[width](n_channels, weight[0].numel()).to(weight.device)
        quantizer.rule = weight_grid.rule
        if isinstance(quantizer, PerChannelInt8Quantizer) and (swapped.reads_integers or swapped.reads_dynamically):
            quantizer.level_max = HALF_RANGE_MAX if weight_grid.half_range else INT8_MAX
        swapped.weight_quantizers[name] = quantizer.train(module.training)
    swapped.refresh_weights()


def _weights(module: Any, layer: Layer) -> dict[str, Tensor]:
    """What is rounded, by name: weights with rows, or of a layer with its own forward the weight alone."""
    if layer.own_forward:
        return {"weight": module.weight.detach()}
    return {name: weight for name, weight in module.named_parameters(recurse=False) if weight.ndim > 1}


def without_rounding_(model: nn.Module) -> None:
    """Makes every rounded linear, convolution, embedding and recurrent layer the torch layer that it was; in place.

    Weights are those that training moves, not their rounded values. The residual of a split layer stays rounded.
    """
    plain = {rounded: kind for kind, rounded in LAYERS.items()}
    for path, module in list(model.named_modules()):
        if path.rpartition(".")[2] != "residual" and isinstance(module, QuantizedLayer):
            kind = plain_class(module) if isinstance(module, InterceptedLayer) else plain[type(module)]
            swapped = _swap_class(model, path, kind)
            for name in ("input_quantizer", "output_quantizer", "weight_quantizers"):
                swapped._modules.pop(name, None)


def _swap_class(model: nn.Module, path: str, counterpart: type[nn.Module]) -> nn.Module:
    module = model.get_submodule(path)
    swapped = counterpart.__new__(counterpart)
    swapped.__dict__.update(module.__dict__)
    for name in ("_parameters", "_buffers", "_modules"):
        swapped.__dict__[name] = dict(module.__dict__[name])
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, swapped)
    return swapped
