"""Writes the folder that a device measures: the uncompressed model, single layers, and whole random candidates."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto
from torch import nn

from autocompress.declared_types import require_types
from autocompress.errors import InputError
from autocompress.files import digest_of, path_inside, read_json
from autocompress.graph import ModelGraph, inspect_model
from autocompress.latency.candidate_encoder import ModelShape
from autocompress.latency.layer_extraction import LayerExtractor
from autocompress.latency.layer_profiles import covering, describe_model, layer_keys, quick_student
from autocompress.latency.on_device import PLAN, write_json
from autocompress.locked_temp_dir import LockedTempDir
from autocompress.runtimes import Runtime, runtime_named
from autocompress.space.candidate import INT8_BITS, Candidate
from autocompress.space.search_space import Knob, SearchSpace
from autocompress.task import Inputs, Task, as_inputs

N_CANDIDATES = 50  # the fewest whose residuals have the quantile of a 96 % interval, with one to spare
MAX_EXTRA = 8
_N_DRAWS = 1000
_REFERENCE, _WRITTEN = "reference", "written.json"
_MOST_DROPPED = 0.7

Listener = Callable[[int, int], None]


@dataclass(frozen=True)
class PlanSettings:
    """How a device is to be profiled.

    Attributes:
        runtime: whose files are written.
        n_threads: threads of the runtime.
        n_candidates: whole candidates to calibrate on.
        batch: samples in one inference; None is the batch of the task's example inputs.
        seed: of the candidates.
    """

    runtime: str = "onnxruntime"
    n_threads: int = 1
    n_candidates: int = N_CANDIDATES
    batch: int | None = None
    seed: int = 0


def write_plan(
    task: Task,
    space: str | SearchSpace,
    folder: Path,
    settings: PlanSettings = PlanSettings(),
    *,
    known: Sequence[str] = (),
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Writes all files that a device has to time; resumes an interrupted call with equal arguments.

    Args:
        task: gives the model.
        space: that candidates are drawn from.
        folder: made if missing.
        settings: how the device is to be profiled.
        known: keys of layers that need not be timed again; those of the uncompressed model are timed all the same, and
            show how fast the device is now.
        listener: called with the number of candidates written, and of all.

    Returns:
        The plan, which is also in `plan.json`.
    """
    target, model, inputs = runtime_named(settings.runtime), task.build_model().eval(), as_inputs(task.example_inputs())
    inputs = inputs if settings.batch is None else _repeated(inputs, settings.batch)
    graph = inspect_model(model, inputs)
    if isinstance(space, str):
        space = SearchSpace.load(space, graph)
    shape = describe_model(model, graph, inputs)
    candidates = draw_candidates(space, settings.n_candidates, settings.seed)
    known = sorted(set(known) - set(layer_keys(shape, [Candidate()])[0]))
    extra = _covering(shape, space, candidates, set(known))
    writer = _Writer(target, folder, shape, graph)
    reference = writer.write(_REFERENCE, Candidate(), model, inputs)
    wholes = {}
    for i, candidate in enumerate([*candidates, *extra]):
        name = f"candidate_{candidate.digest}"
        if not writer.has(name):
            writer.write(name, candidate, quick_student(model, graph, candidate, inputs), inputs)
        if i < len(candidates):
            wholes[writer.file(name)] = candidate.to_dict()
        if listener is not None:
            listener(i + 1, len(candidates) + len(extra))
    pieces = {key: file for key, file in writer.pieces().items() if key not in known}
    plan = {
        "digest": _digest([settings.runtime, settings.n_threads, sorted(pieces), sorted(wholes)]),
        "task": str(getattr(task, "name", type(task).__name__)),
        "runtime": settings.runtime,
        "n_threads": settings.n_threads,
        "batch": batch_size(inputs),
        "reference": reference,
        "weights": {"file": WEIGHTS_FILE, "n_bytes": writer.n_bytes},
        "files": [*wholes, *pieces.values()],
        "pieces": pieces,
        "candidates": wholes,
        "shape": shape.to_dict(),
    }
    write_json(folder / PLAN, plan)
    return plan


def draw_candidates(space: SearchSpace, n_candidates: int, seed: int) -> list[Candidate]:
    """Distinct random candidates: half drawn uniformly, half mild in some kinds of knobs and strong in others.

    The second kind covers what a search often proposes: few dropped branches, or 8 bits in almost all layers.
    """
    found: dict[str, Candidate] = {}
    for i in range(20 * n_candidates):
        if len(found) == n_candidates:
            break
        rng = random.Random(f"{seed} {i}")
        candidate = _uneven(space, rng) if i % 2 else space.sample(rng.randrange(2**32))
        if not candidate.is_baseline:
            found.setdefault(candidate.digest, candidate)
    return list(found.values())


def _uneven(space: SearchSpace, rng: random.Random) -> Candidate:
    rate = {kind: rng.random() for kind in sorted({knob.kind for knob in space.knobs})}
    rate["drop"] = _MOST_DROPPED * rate.get("drop", 0.0)

    def choose(knob: Knob) -> Any:
        return rng.choice(knob.choices[1:]) if rng.random() < rate[knob.kind] else knob.choices[0]

    return space.candidate({knob.name: choose(knob) for knob in space.knobs})


def _covering(shape: ModelShape, space: SearchSpace, candidates: list[Candidate], known: set[str]) -> list[Candidate]:
    """A few more candidates, which are only cut into layers, for layers of the space that are in none of these."""
    drawn = [space.sample(i) for i in range(_N_DRAWS)]
    keys = layer_keys(shape, [Candidate(), *candidates, *drawn])
    have = known | {key for row in keys[: len(candidates) + 1] for key in row if key is not None}
    return [drawn[i] for i in covering(keys[len(candidates) + 1 :], have, MAX_EXTRA)]


class _Writer:
    """Exports whole models into one flat folder, and cuts each into layers; files that are there already stay.

    Attributes:
        n_bytes: of shared weights that the files need.
    """

    def __init__(self, target: Runtime, folder: Path, shape: ModelShape, graph: ModelGraph) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._target, self._folder, self._shape, self._graph = target, folder, shape, graph
        self._index = folder / _WRITTEN
        self._sizes: dict[str, Any] = _written(self._index) if self._index.is_file() else {}

    @property
    def n_bytes(self) -> int:
        return max((entry["n_bytes"] for entry in self._sizes.values()), default=0)

    def has(self, name: str) -> bool:
        return name in self._sizes

    def file(self, name: str) -> str:
        return f"{name}.onnx"

    def pieces(self) -> dict[str, str]:
        """Key of each layer that was cut out -> its file."""
        return {key: file for entry in self._sizes.values() for key, file in entry["pieces"].items()}

    def write(self, name: str, candidate: Candidate, student: nn.Module, inputs: Inputs) -> str:
        """Name of the file, which is made where it is missing.

        Raises:
            InputError: the runtime's files are not ONNX files, which alone can be cut.
        """
        if not self.has(name):
            with LockedTempDir(self._folder) as scratch:
                made = self._target.export(student, inputs, scratch.path)
                if made.suffix != ".onnx":
                    raise InputError(f"a profile is made of ONNX files, but {self._target.name} writes {made.suffix}")
                model = onnx.load(made)
            pieces = self._cut(model, candidate)
            n_bytes = write_shared(model, self._folder / self.file(name))
            self._sizes[name] = {"n_bytes": n_bytes, "pieces": pieces}
            write_json(self._index, self._sizes)
        return self.file(name)

    def _cut(self, model: onnx.ModelProto, candidate: Candidate) -> dict[str, str]:
        """Writes the layers that are new; key -> file."""
        keys, done = layer_keys(self._shape, [candidate])[0], self.pieces()
        new = {key: j for j, key in enumerate(keys) if key is not None and key not in done}
        cutter, pieces = LayerExtractor(model), {}
        for key, j in new.items():
            layer = self._graph.layers[j]
            integer = layer.kind.startswith("conv") and candidate.weight_bits.get(layer.path) == INT8_BITS
            part = cutter.cut(layer.path, layer.norm, layer.relu, integer)
            if part is not None:
                pieces[key] = f"layer_{_digest(key)}.onnx"
                write_shared(part, self._folder / pieces[key])
        return pieces


def _written(index: Path) -> dict[str, Any]:
    """What an earlier call wrote: name -> bytes of weights, and the layers that were cut out."""
    entries = read_json(index, "index of a profile")
    try:
        for entry in entries.values():
            require_types(entry["n_bytes"], int)
            require_types(entry["pieces"], Mapping[str, str])
            for file in entry["pieces"].values():
                path_inside(index.parent, file)
    except (KeyError, TypeError) as error:
        raise InputError(f"{index} is damaged: {error}; remove the folder") from error
    return entries


def _repeated(inputs: Inputs, batch: int) -> Inputs:
    """The first sample, repeated `batch` times."""
    if isinstance(inputs, dict):
        return {name: value[:1].repeat_interleave(batch, 0) for name, value in inputs.items()}
    return tuple(value[:1].repeat_interleave(batch, 0) for value in inputs)


def batch_size(inputs: Inputs) -> int:
    """Samples in one inference."""
    tensors = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
    return int(tensors[0].shape[0])


def _digest(value: object) -> str:
    return digest_of(json.dumps(value), 12)


WEIGHTS_FILE = "weights.bin"
_SMALLEST_BYTES = 1024
_ALIGNMENT = 64
_SHARED_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8)


def write_shared(model: onnx.ModelProto, file: Path) -> int:
    """Writes a model whose large tensors lie in `weights.bin` in the same folder, one after the other.

    Small ones (scales, zero points, shapes, biases) keep their values. No two tensors of one file share a place, so
    that caches see as many bytes as with the true weights.

    Returns:
        Bytes of `weights.bin` that the file needs.
    """
    shared = onnx.ModelProto()
    shared.CopyFrom(model)
    end = 0
    for tensor in shared.graph.initializer:
        n_bytes = len(tensor.raw_data)
        if n_bytes < _SMALLEST_BYTES or tensor.data_type not in _SHARED_TYPES:
            continue
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS_FILE), ("offset", end), ("length", n_bytes)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        end += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
    file.write_bytes(shared.SerializeToString())
    return end
