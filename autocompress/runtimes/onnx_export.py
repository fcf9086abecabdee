"""Writes a PyTorch model as an ONNX file with integer weights where layers are quantized."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.onnx._internal.exporter import _registration

from autocompress.devices import map_tensors, tensors_in
from autocompress.errors import ExportError, InputError
from autocompress.runtimes.divergence import failing_place
from autocompress.runtimes.fake_quant_export import marked_copy
from autocompress.runtimes.integer_biases import store_integer_biases_
from autocompress.runtimes.integer_flow import let_integers_flow_
from autocompress.runtimes.node_names import name_nodes_by_module_
from autocompress.runtimes.onnx_weights import store_weights_
from autocompress.task import DynamicDims, Inputs


def write_onnx(
    student: nn.Module,
    example_inputs: Inputs,
    file: Path,
    notes: Mapping[str, str] | None = None,
    dynamic_dims: DynamicDims | None = None,
    dynamic_lstm: bool = False,
) -> None:
    """Traces the model in evaluation mode at the shapes of `example_inputs` and writes one self-contained ONNX file.

    Args:
        student: the model.
        example_inputs: of the shapes that the file will take.
        file: is written.
        notes: metadata of the file.
        dynamic_dims: dimensions of any size.
        dynamic_lstm: see `store_weights_`.

    Raises:
        ExportError: the exporter cannot write some op; names it and its module, and the exporter's own words follow.
    """
    marked, weights = marked_copy(student, example_inputs, dynamic_lstm)
    traced = example_inputs if not dynamic_dims else _at_least_two(example_inputs)
    # without the empty dict a last argument that is a dict would be taken for keyword arguments
    args, kwargs = ((), traced) if isinstance(traced, dict) else ((*traced, {}), None)
    shapes = None if not dynamic_dims else _dynamic_shapes(example_inputs, dynamic_dims)
    try:
        with _quiet(), _uncollected(), _translations_kept(), torch.no_grad():
            program = torch.onnx.export(marked, args, kwargs=kwargs, dynamic_shapes=shapes, dynamo=True, verbose=False)
    except Exception as error:
        place = failing_place(error, marked)
        raise ExportError(
            f"{place} cannot be written as ONNX: {_first_lines(error)}; replace it by ops that can, or use the runtime "
            "'torch'"
        ) from error
    if program is None:
        raise ExportError("the model cannot be written as ONNX: the exporter returned nothing")
    proto = program.model_proto
    name_nodes_by_module_(proto)
    store_weights_(proto, weights, dynamic_lstm)
    store_integer_biases_(proto)
    if weights:
        let_integers_flow_(proto)
    _strip_notes_(proto)
    onnx.helper.set_model_props(proto, dict(notes or {}))
    onnx.checker.check_model(proto)
    onnx.save(proto, file)


def _at_least_two(inputs: Inputs) -> Inputs:
    """Two samples instead of one: torch takes a size of 1 for a fixed one."""
    doubled: Inputs = map_tensors(lambda value: torch.cat([value, value]) if len(value) == 1 else value, inputs)
    return doubled


def _dynamic_shapes(inputs: Inputs, dynamic_dims: DynamicDims) -> Any:
    """What `torch.onnx.export` calls dynamic shapes: in the form of the inputs, the named dimensions of each tensor.

    Raises:
        InputError: there is no such input, or it has no such dimension.
    """
    items: dict[Any, Any] = dict(inputs) if isinstance(inputs, dict) else dict(enumerate(inputs))
    for name, dims in dynamic_dims.items():
        n_dims = min((value.ndim for value in tensors_in(items.get(name))), default=0)
        if not all(0 <= dim < n_dims for dim in dims):
            raise InputError(
                f"dynamic_dims must name inputs and their dimensions, but {name!r} with {dict(dims)} is none of "
                f"{ {key: [tuple(value.shape) for value in tensors_in(item)] for key, item in items.items()} }"
            )
    shapes = {key: _for_each_tensor(dynamic_dims.get(key), item) for key, item in items.items()}
    return shapes if isinstance(inputs, dict) else tuple(shapes.values())


def _for_each_tensor(value: object, nested: object) -> Any:
    """The nested value with `value` in place of each tensor."""
    return map_tensors(lambda _: value, nested)


def _strip_notes_(model: onnx.ModelProto) -> None:
    """Removes documentation and metadata that the exporter wrote; they name local files and double small models."""
    graph = model.graph
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    del graph.metadata_props[:]
    del model.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes from the terminal: optional packages, deprecations, constants it cannot fold."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _translations_kept() -> Iterator[None]:
    """Reads the exporter's table of translations once a process: reading it anew takes most of a small export."""
    owner = getattr(_registration, "ONNXRegistry", None)
    if owner is None or "from_torchlib" not in vars(owner):  # another version of the exporter: right, only slower
        yield
        return
    before = vars(owner)["from_torchlib"]
    make = before.__get__(None, owner)
    owner.from_torchlib = staticmethod(lambda **options: _kept(make, **options))
    try:
        yield
    finally:
        owner.from_torchlib = before


_TABLES: dict[str, Any] = {}


def _kept(make: Callable[..., Any], **options: Any) -> Any:
    """The table for these options; it is only read, since the exporter gets no translations of our own."""
    key = repr(sorted(options.items()))
    if key not in _TABLES:
        _TABLES[key] = make(**options)
    return _TABLES[key]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Switches garbage collection off: with the exporter's many objects it would take a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _first_lines(error: BaseException) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return " ".join(str(cause).split())[:500] or type(cause).__name__
