"""Estimates latency, energy and memory of candidates on a described device: no measurement, and labelled as none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import InputError
from autocompress.files import read_json
from autocompress.graph import ModelGraph, inspect_model
from autocompress.latency.candidate_encoder import Encoder, ModelShape
from autocompress.latency.hardware_description import Hardware
from autocompress.latency.layer_costs import layer_cost
from autocompress.latency.layer_profiles import describe_model
from autocompress.latency.on_device import write_json
from autocompress.latency.plan import batch_size
from autocompress.latency.schema import DamageError, check_positive, check_type
from autocompress.latency.table import measured_pairs, require_same_model, shape_of
from autocompress.space.candidate import PRECISIONS, Candidate, Precision
from autocompress.space.search_space import SearchSpace
from autocompress.task import Task, as_inputs

Floats = NDArray[np.float64]
SCHEMA_VERSION = 1
_HEAD: dict[str, Any] = {
    "task": str,
    "n_threads": int,
    "batch": int,
    "estimate": Mapping[str, Any],
    "shape": ModelShape,
}

_MAC_PJ = {32: 4.6, 16: 1.5, 8: 0.33}
"""Multiplication and addition: fp32 3.7 + 0.9, fp16 1.1 + 0.4, int8 0.2 with the sum in int32 0.1 and 0.03."""
_MEMORY_PJ, _CACHE_PJ = 244.0, 12.5  # a byte from DRAM (1.3 to 2.6 nJ for 8 bytes) and from a cache of 1 MB (100 pJ)
_PJ_IN_MJ, _MIB = 1e-9, 2.0**20
_OFF = 0.5  # how far a latency may be off, as a share, before anything was measured
_OFF_RATIO = 0.25  # of a ratio to the uncompressed model, of which common errors cancel
_TRUST = 4.0  # measurements that the estimate counts for
_ENOUGH = 12


@dataclass(frozen=True)
class Totals:
    """Sums over whole candidates, each array of shape (n_candidates,).

    Attributes:
        ms: latency of one inference.
        energy_mj: of its arithmetic and of the bytes that it moves, in millijoules.
        size_mib: weights.
        memory_mib: weights and the largest inputs and outputs of one layer.
    """

    ms: Floats
    energy_mj: Floats
    size_mib: Floats
    memory_mib: Floats


@dataclass(frozen=True)
class _Costs:
    """Of every layer of every candidate: `LayerCost`, peak multiply-accumulates a second, and picojoules of one."""

    macs: Floats
    n_launches: Floats
    weight_bytes: Floats
    read_bytes: Floats
    activation_bytes: Floats
    peak: Floats
    mac_pj: Floats


@dataclass
class Estimate:
    """A roofline model: each kernel takes as long as its arithmetic or its bytes, and a launch.

    In place of a profile where there is no device at hand. Energy is by the figures of Horowitz 2014 (ISSCC,
    "Computing's energy problem", 45 nm): good for comparing candidates, not for the battery of a newer chip. Measured
    ratios, as a search makes them, correct it linearly.

    Args:
        hardware: the described device.
        shape: of the model.
        head: task, n_threads and batch.
        updates: measured candidates and their ratios to the uncompressed model.
    """

    hardware: Hardware
    shape: ModelShape
    head: Mapping[str, Any]
    updates: list[tuple[Candidate, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._encoder = Encoder(self.shape)
        self._known: dict[tuple[int, ...], tuple[float, ...]] = {}
        self.baseline_ms = float(self.totals([Candidate()]).ms[0])

    def totals(self, candidates: Sequence[Candidate]) -> Totals:
        """Latency, energy, size and memory, without the correction by measurements."""
        costs, alive = self._costs_of(candidates)
        device, batch = self.hardware, float(self.head["batch"])
        cached, picojoules = device.cache_mib * _MIB, costs.macs * costs.mac_pj * batch
        weights = costs.weight_bytes.sum(1)
        moved = costs.activation_bytes * batch
        slow = costs.read_bytes * (weights > cached)[:, None] + moved * (moved > cached)
        quick = costs.read_bytes + moved - slow
        in_memory = slow / (1e9 * device.bandwidth_gb_s) + quick / (1e9 * device.cache_bandwidth_gb_s)
        seconds = np.maximum(batch * costs.macs / costs.peak, in_memory) + costs.n_launches * device.launch_us * 1e-6
        energy = (picojoules + slow * _MEMORY_PJ + quick * _CACHE_PJ).sum(1) * _PJ_IN_MJ
        ms = (device.run_us * 1e-6 + (seconds * alive).sum(1)) * 1e3
        return Totals(ms, energy, weights / _MIB, (weights + moved.max(1, initial=0.0)) / _MIB)

    def predict(self, candidates: Sequence[Candidate]) -> Floats:
        """Milliseconds, shape (n,)."""
        return self.ratios(candidates) * self.baseline_ms

    def ratios(self, candidates: Sequence[Candidate]) -> Floats:
        """Ratios to the uncompressed model's latency, shape (n,)."""
        raw = self.totals(candidates).ms / self.baseline_ms
        fixed, factor = self._correction()
        ratios: Floats = np.maximum(fixed + factor * raw, 1e-3)
        return ratios

    def interval(self, candidates: Sequence[Candidate]) -> Floats:
        """Lower and upper ends in milliseconds, shape (n, 2)."""
        return self.ratio_interval(candidates) * self.baseline_ms

    def ratio_interval(self, candidates: Sequence[Candidate]) -> Floats:
        """Lower and upper ends as ratios, shape (n, 2): a guess until a dozen candidates were measured."""
        ratios, off = self.ratios(candidates), self._off()
        return np.stack([ratios * (1 - off), ratios * (1 + off)], 1)

    def update(self, candidate: Candidate, measured_ratio: float) -> None:
        """Learns from a measurement.

        Raises:
            InputError: the ratio is not a positive number.
        """
        if not (np.isfinite(measured_ratio) and measured_ratio > 0):
            raise InputError(f"`measured_ratio > 0` must hold, but got {measured_ratio}")
        self.updates.append((candidate, float(measured_ratio)))

    def require(self, *, runtime: str, n_threads: int, batch: int, force: bool = False) -> None:
        """Refuses an estimate for another number of threads or batch; it knows no runtime and is of no device at hand.

        Raises:
            InputError: it is of another one.
        """
        here = {"n_threads": n_threads, "batch": batch}
        wrong = [f"{key} {self.head[key]!r}, not {value!r}" for key, value in here.items() if self.head[key] != value]
        if wrong and not force:
            raise InputError(f"the estimate is for {', '.join(wrong)}; make a new one, or force it (--force-profile)")

    def require_model(self, graph: ModelGraph) -> None:
        """Refuses an estimate of another model.

        Raises:
            InputError: layers, channel groups or branches are others.
        """
        require_same_model(self.shape, graph, str(self.head["task"]))

    def facts(self) -> Mapping[str, Any]:
        """What it was made for."""
        return {**self.head, "estimate": self.hardware.name, "source": self.hardware.source}

    def save(self, path: str | Path) -> None:
        """Writes the description of the device, the model's shape and the updates as JSON."""
        updates = [[candidate.to_dict(), ratio] for candidate, ratio in self.updates]
        body = {"estimate": self.hardware.to_dict(), "shape": self.shape.to_dict(), "updates": updates}
        write_json(Path(path), {"schema": SCHEMA_VERSION, **self.head, **body})

    @classmethod
    def load(cls, path: str | Path) -> Estimate:
        """Reads what `save` wrote.

        Raises:
            InputError: the file is missing, cut off or edited; names the line.
        """
        data = read_json(Path(path))
        try:
            if data.get("schema") != SCHEMA_VERSION:
                raise DamageError(("schema",), f"must be {SCHEMA_VERSION}, but is {data.get('schema')!r}")
            for key, kind in _HEAD.items():
                check_type(kind, data.get(key), (key,))
            for key in ("n_threads", "batch"):
                check_positive(data[key], (key,))
            check_type(ModelShape, data.get("shape"), ("shape",))
            check_type(Mapping[str, Any], data.get("estimate"), ("estimate",))
            shape = shape_of(data["shape"])
            updates = measured_pairs(shape, "updates", data.get("updates", []))
        except DamageError as damage:
            raise damage.at_line(Path(path)) from damage
        head = {key: data[key] for key in ("task", "n_threads", "batch")}
        return cls(Hardware.from_dict(data["estimate"]), shape, head, updates)

    def _costs_of(self, candidates: Sequence[Candidate]) -> tuple[_Costs, NDArray[np.bool_]]:
        """Costs of every layer, 0 where it is dropped, and which are there; (n_candidates, n_layers) each."""
        states = self._encoder.states(candidates)
        fields = np.stack([states.n_out, states.n_in, states.rank, states.bits], -1)
        layers = np.broadcast_to(np.arange(fields.shape[1])[:, None], (*fields.shape[:2], 1))
        rows, inverse = np.unique(np.concatenate([layers, fields], -1).reshape(-1, 5), axis=0, return_inverse=True)
        table = np.array([self._cost(*row) for row in rows.tolist()])[inverse].reshape(*fields.shape[:2], -1)
        return _Costs(
            *np.moveaxis(table[..., :5] * states.alive[..., None], -1, 0), *np.moveaxis(table[..., 5:], -1, 0)
        ), states.alive

    def _cost(self, layer: int, n_out: int, n_in: int, rank: int, bits: int) -> tuple[float, ...]:
        key = (layer, n_out, n_in, rank, bits)
        if key not in self._known:
            precision = PRECISIONS[bits]
            cost = layer_cost(self.shape.layers[layer], n_out, n_in, self._encoder.ranks[rank], precision)
            peak = self.hardware.peak(precision, int(self.head["n_threads"]))
            self._known[key] = (*astuple(cost), peak, _mac_pj(precision))
        return self._known[key]

    def _correction(self) -> tuple[float, float]:
        """Fixed share and factor from estimated to measured ratios: least squares with the prior 0 and 1."""
        if not self.updates:
            return 0.0, 1.0
        candidates, measured = zip(*self.updates, strict=True)
        raw = self.totals(candidates).ms / self.baseline_ms
        rows = np.stack([np.ones_like(raw), raw], 1) / np.array(measured)[:, None]
        gram = rows.T @ rows + _TRUST * np.eye(2)
        fixed, factor = np.linalg.solve(gram, rows.sum(0) + _TRUST * np.array([0.0, 1.0]))
        return float(fixed), float(max(factor, 0.0))

    def _off(self) -> float:
        if len(self.updates) < _ENOUGH:
            return _OFF if not self.updates else _OFF_RATIO
        candidates, measured = zip(*self.updates, strict=True)
        errors = np.abs(self.ratios(candidates) / np.array(measured) - 1)
        return float(np.quantile(errors, 0.95))


def estimate_of(
    task: Task, space: str | SearchSpace, hardware: Hardware, n_threads: int, batch: int | None = None
) -> tuple[Estimate, SearchSpace]:
    """An estimate of a task's model, and the space of its candidates.

    Args:
        task: gives the model.
        space: name, path or space.
        hardware: the described device.
        n_threads: that the runtime is to use.
        batch: samples in one inference; None is the batch of the task's example inputs.
    """
    model, inputs = task.build_model().eval(), as_inputs(task.example_inputs())
    graph = inspect_model(model, inputs)
    head = {
        "task": str(getattr(task, "name", type(task).__name__)),
        "n_threads": n_threads,
        "batch": batch_size(inputs) if batch is None else batch,
    }
    loaded = SearchSpace.load(space, graph) if isinstance(space, str) else space
    return Estimate(hardware, describe_model(model, graph, inputs), head), loaded


def _mac_pj(precision: Precision) -> float:
    """Weights alone in fewer bits are multiplied in full precision."""
    return _MAC_PJ.get(precision, _MAC_PJ[32]) if isinstance(precision, int) else _MAC_PJ[32]
