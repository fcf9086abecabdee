"""The loss increase of each single choice of a space: measured on calibration data, in parallel, cached, resumable."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.util import ActorPool
from torch import nn

from autocompress.compression import CalibrationStats, RebuildOptions, rebuild, resolve
from autocompress.config import SearchSettings
from autocompress.declared_types import require_types
from autocompress.errors import AutocompressError, InputError, WorkerError
from autocompress.files import read_json, write_atomically
from autocompress.graph import ModelGraph
from autocompress.latency import MeasurementLock
from autocompress.publishing.artifact import model_digest
from autocompress.space.candidate import Candidate
from autocompress.space.search_space import AS_IT_IS, Choice, Knob, SearchSpace
from autocompress.task import Batch, Inputs, Task, as_batch, as_inputs, call_model

SCHEMA_VERSION = 1
UNIT = "calibration loss increase"
N_SAMPLES = 128
_SEED = 0


@dataclass(frozen=True)
class ChoiceLoss:
    """One choice of one knob, everything else unchanged.

    Attributes:
        knob: its kind, a field of `Candidate`.
        name: the channel group, branch or layer.
        value: the choice.
        loss_increase: against the uncompressed model; NaN where the choice cannot be applied.
    """

    knob: str
    name: str
    value: Choice
    loss_increase: float


@dataclass(frozen=True)
class Sensitivity:
    """All single choices of a space that change something.

    Attributes:
        baseline_loss: of the uncompressed model.
        choices: in the space's order.
        unit: of the increases.
    """

    baseline_loss: float
    choices: tuple[ChoiceLoss, ...]
    unit: str = UNIT

    def increases(self, space: SearchSpace) -> dict[str, dict[Choice, float]]:
        """Knob name -> choice -> loss increase, 0 for the choice that changes nothing, infinite where it fails."""
        known = {(item.knob, item.name, item.value): item.loss_increase for item in self.choices}
        table: dict[str, dict[Choice, float]] = {}
        for knob in space.knobs:
            values = {choice: known.get((knob.kind, knob.target, choice), 0.0) for choice in knob.choices}
            table[knob.name] = {choice: math.inf if math.isnan(value) else value for choice, value in values.items()}
        return table

    def write(self, path: Path) -> None:
        """Writes `sensitivity.json`; NaN becomes null."""
        choices = [
            {**asdict(item), "loss_increase": None if math.isnan(item.loss_increase) else item.loss_increase}
            for item in self.choices
        ]
        data = {"schema": SCHEMA_VERSION, "unit": self.unit, "baseline_loss": self.baseline_loss, "choices": choices}
        write_atomically(path, json.dumps(data, indent=1))

    @classmethod
    def read(cls, path: Path) -> Sensitivity:
        """The inverse of `write`.

        Raises:
            InputError: missing, damaged, or of another schema.
        """
        try:
            data = read_json(path, "sensitivities")
            if data["schema"] != SCHEMA_VERSION:
                raise InputError(f"{path} was written by another version; remove it and it is measured again")
            choices = tuple(
                ChoiceLoss(
                    item["knob"],
                    item["name"],
                    item["value"],
                    math.nan if item["loss_increase"] is None else float(item["loss_increase"]),
                )
                for item in data["choices"]
            )
            read = cls(float(data["baseline_loss"]), choices, data["unit"])
            require_types(read, cls)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} must hold sensitivities, but: {error}; remove it to measure again") from error
        if not math.isfinite(read.baseline_loss):
            raise InputError(f"{path} must hold a finite baseline_loss; remove it to measure again")
        return read


@dataclass(frozen=True)
class Effort:
    """What measuring sensitivities may take.

    Attributes:
        n_workers: Ray workers at the same time.
        until: time of `time.monotonic` after which no further choice is measured; None measures all.
        on_choice: called with how many of how many choices are known, after each.
    """

    n_workers: int = 1
    until: float | None = None
    on_choice: Callable[[int, int], None] = lambda done, total: None

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        return self.until is not None and time.monotonic() >= self.until


class SensitivityProbe:
    """Judges candidates on a little labelled data, without training.

    Args:
        task: what is compressed.
        model: the uncompressed model.
        graph: of the model.
        settings: how candidates are compressed.
        half_range_weights: see `Recipe`.
        n_samples: samples of the calibration and of the labelled training batches; whole batches are taken.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        graph: ModelGraph,
        settings: SearchSettings,
        half_range_weights: bool = False,
        n_samples: int = N_SAMPLES,
    ) -> None:
        self._half_range_weights = half_range_weights
        self._task, self._model, self._graph, self._settings = task, model.eval(), graph, settings
        self._calibration = list(_first_samples(map(as_inputs, task.calibration_batches()), n_samples, _n_inputs))
        self._labelled = list(_first_samples(map(as_batch, task.train_batches(_SEED)), n_samples, _n_batch))
        self._calibration_stats = CalibrationStats(model, graph, self._calibration, task, _SEED)
        self._measurement_lock = MeasurementLock()

    @property
    def labelled(self) -> Sequence[Batch]:
        """The labelled batches on which losses are judged."""
        return self._labelled

    @property
    def digest(self) -> str:
        """12 hex digits that change with the model, the data and the way of compressing."""
        settings = self._settings
        how = (settings.importance, settings.reconstruct, settings.activation_aware, settings.quantize)
        way = (*how, "half range") if self._half_range_weights else how
        digest = hashlib.sha256(f"{model_digest(self._model)}{way}".encode())
        for inputs in (*self._calibration, *(inputs for inputs, _ in self._labelled)):
            for value in inputs.values() if isinstance(inputs, dict) else inputs:
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:12]

    def loss(self, candidate: Candidate) -> float:
        """Mean loss of the compressed, untrained candidate; NaN where it cannot be built."""
        with self._measurement_lock.shared():
            try:
                student = self._student(candidate)
            except AutocompressError:
                return math.nan
            total = sum(self._one(student, batch) * _n_batch(batch) for batch in self._labelled)
        return total / sum(map(_n_batch, self._labelled))

    def _student(self, candidate: Candidate) -> nn.Module:
        model, graph, calibration_stats, how = self._model, self._graph, self._calibration_stats, self._settings
        recipe = resolve(model, graph, candidate, how.importance, calibration_stats, how.activation_aware)
        recipe = replace(recipe, half_range_weights=self._half_range_weights)
        options = RebuildOptions(how.reconstruct, how.activation_aware, how.quantize)
        return rebuild(model, graph, recipe, self._calibration, options, calibration_stats)

    def _one(self, student: nn.Module, batch: Batch) -> float:
        with torch.no_grad():
            return float(self._task.loss(call_model(student, batch[0]), batch))


def single_choices(space: SearchSpace) -> Iterator[tuple[Knob, Choice, Candidate]]:
    """Each choice that changes the model, alone."""
    for knob in space.knobs:
        if knob.kind == "fine_tune":
            continue
        for choice in knob.choices:
            if choice != AS_IT_IS[knob.kind]:
                yield knob, choice, space.candidate({knob.name: choice})


def measure_sensitivity(
    space: SearchSpace,
    probe: SensitivityProbe,
    cache: Path,
    make_probe: Callable[[], SensitivityProbe] | None = None,
    effort: Effort | None = None,
) -> Sensitivity:
    """Measures every single choice that the cache does not know; may be stopped and called again at any point.

    When the time is over, choices that were not measured are estimated from those that were; see `with_estimates`.

    Args:
        space: of the search.
        probe: on this process; judges what is left when there is one worker.
        cache: folder of the losses known so far, one file for each model, data and way of compressing.
        make_probe: makes the probe again on a Ray worker; None judges on this process.
        effort: workers and time.

    Raises:
        InputError: the uncompressed model's loss is not finite.
    """
    effort = effort or Effort()
    path = cache / f"{probe.digest}.jsonl"
    known = _known(path)
    wanted = {Candidate().digest: Candidate()}
    wanted |= {candidate.digest: candidate for _, _, candidate in spread_choices(space)}
    missing = [candidate for digest, candidate in wanted.items() if digest not in known]
    cache.mkdir(parents=True, exist_ok=True)
    parallel = make_probe is not None and effort.n_workers > 1 and len(missing) > effort.n_workers
    losses = _on_workers(make_probe, missing, effort.n_workers) if parallel and make_probe else _here(probe, missing)
    with path.open("a", encoding="utf-8") as file:
        for i, (digest, loss) in enumerate(losses):
            known[digest] = loss
            file.write(json.dumps({"candidate": digest, "loss": None if math.isnan(loss) else loss}) + "\n")
            file.flush()
            effort.on_choice(len(wanted) - len(missing) + i + 1, len(wanted))
            if effort.is_over and Candidate().digest in known:
                break
    baseline = known[Candidate().digest]
    if not math.isfinite(baseline):
        raise InputError(f"the uncompressed model's loss on training batches must be finite, but is {baseline}")
    measured = {
        (knob.name, choice): known[candidate.digest] - baseline
        for knob, choice, candidate in single_choices(space)
        if candidate.digest in known
    }
    losses_of = with_estimates(space, measured)
    return Sensitivity(
        baseline,
        tuple(
            ChoiceLoss(knob.kind, knob.target, choice, losses_of[knob.name, choice])
            for knob, choice, _ in single_choices(space)
        ),
    )


def spread_choices(space: SearchSpace) -> list[tuple[Knob, Choice, Candidate]]:
    """All single choices, in an order whose beginning says something of every knob: strongest choices first."""
    by_knob: dict[str, list[tuple[Knob, Choice, Candidate]]] = {}
    for item in single_choices(space):
        by_knob.setdefault(item[0].name, []).append(item)
    rows = [items[::-1] for items in by_knob.values()]
    return [row[i] for i in range(max(map(len, rows), default=0)) for row in rows if i < len(row)]


def with_estimates(space: SearchSpace, measured: Mapping[tuple[str, Choice], float]) -> dict[tuple[str, Choice], float]:
    """Loss increases of all single choices; those that were not measured are estimated.

    A knob's own measured choices are interpolated over their positions in its list, from no increase at the choice
    that changes nothing. A knob without any gets the median of its kind at the same position.

    Args:
        space: of the search.
        measured: (knob name, choice) -> loss increase; NaN for a choice that cannot be built.
    """
    found = dict(measured)
    shares: dict[str, list[tuple[float, float]]] = {}
    for knob in space.knobs:
        for place, choice in enumerate(knob.choices):
            value = measured.get((knob.name, choice))
            if value is not None and math.isfinite(value):
                shares.setdefault(knob.kind, []).append((place / max(1, len(knob.choices) - 1), value))
    for knob, choice, _ in single_choices(space):
        if (knob.name, choice) in found:
            continue
        own = [
            (place, measured[knob.name, other])
            for place, other in enumerate(knob.choices)
            if math.isfinite(measured.get((knob.name, other), math.nan))
        ]
        place = knob.choices.index(choice)
        if own:
            unchanged = knob.choices.index(AS_IT_IS[knob.kind]) if AS_IT_IS[knob.kind] in knob.choices else -1
            places, values = zip(*sorted([(unchanged, 0.0), *own]), strict=True)
            found[knob.name, choice] = float(np.interp(place, places, values))
        else:
            share = place / max(1, len(knob.choices) - 1)
            near = sorted(shares.get(knob.kind, [(share, 0.0)]), key=lambda item: abs(item[0] - share))
            closest = [value for at, value in near if abs(at - share) == abs(near[0][0] - share)]
            found[knob.name, choice] = float(np.median(closest))
    return found


def _known(path: Path) -> dict[str, float]:
    """Losses by digest of the candidate; lines that are none, as half of one of a killed run, are measured again."""
    losses = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            item = json.loads(line)
            losses[str(item["candidate"])] = math.nan if item["loss"] is None else float(item["loss"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return losses


def _here(probe: SensitivityProbe, candidates: Iterable[Candidate]) -> Iterator[tuple[str, float]]:
    for candidate in candidates:
        yield candidate.digest, probe.loss(candidate)


class _Prober:
    """A Ray actor with a probe of its own, made at its first call and again after it died."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._probe: SensitivityProbe | None = None

    def loss(self, make_probe: list[Any], text: str) -> tuple[str, float]:
        if self._probe is None:
            self._probe = ray.get(make_probe[0])()
        candidate = Candidate.from_dict(json.loads(text))
        return candidate.digest, self._probe.loss(candidate)


def _on_workers(
    make_probe: Callable[[], SensitivityProbe], candidates: Sequence[Candidate], n_workers: int
) -> Iterator[tuple[str, float]]:
    remote = ray.remote(num_cpus=1, max_restarts=1, max_task_retries=1)(_Prober)
    shared = [ray.put(make_probe)]  # in a list, so that Ray passes the reference on and each actor reads it once
    pool = ActorPool([remote.remote() for _ in range(n_workers)])
    texts = [candidate.to_json() for candidate in candidates]
    try:
        yield from pool.map_unordered(lambda actor, text: actor.loss.remote(shared, text), texts)
    except ray.exceptions.RayError as error:
        cause = str(error).strip().splitlines()[-1]
        raise WorkerError(f"a worker cannot judge candidates: {cause}") from error


def _first_samples(batches: Iterable[Any], n: int, size: Callable[[Any], int]) -> Iterator[Any]:
    taken = 0
    for batch in batches:
        yield batch
        taken += size(batch)
        if taken >= n:
            return


def _n_inputs(inputs: Inputs) -> int:
    first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0]
    return int(first.shape[0])


def _n_batch(batch: Batch) -> int:
    return _n_inputs(batch[0])
