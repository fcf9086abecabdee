"""Everything the page shows, as plain JSON values; the page draws and computes nothing else."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.report.commands import commands
from autocompress.report.interval import interval_of
from autocompress.report.point_files import PointFiles, read_point_files, time_shares
from autocompress.report.why import why_not_faster
from autocompress.report.wording import candidate_text, is_number, is_share, likeness_text, reason_text, stopped_text
from autocompress.results.objectives import Objectives, ratio, score
from autocompress.results.pareto import hypervolume
from autocompress.results.peer import peer_text, read_peer
from autocompress.results.records import FileNumbers, Latency, TrialRecord
from autocompress.results.run_folder import Run, RunInfo
from autocompress.space.candidate import FULL_BITS, Candidate


def hypervolume_history(records: Iterable[TrialRecord], objectives: Objectives) -> list[tuple[int, float, float]]:
    """(trials ended, seconds since the start, hypervolume) after each trial that ended.

    From the search's own numbers: the exported files' exist for the last front only, and one curve needs one clock.
    The reference point is that of `ParetoFront.hypervolume`.
    """
    front = np.empty((0, 2))
    area, history = 0.0, []
    for n_ended, record in enumerate(sorted(records, key=lambda record: record.ended), start=1):
        cost = _search_cost(record, objectives)
        if cost is not None and not (front <= cost).all(axis=1).any():
            front = np.vstack([front[~(front >= cost).all(axis=1)], cost])
            area = hypervolume(front, objectives.reference_point)
        history.append((n_ended, record.ended, area))
    return history


def _search_cost(record: TrialRecord, objectives: Objectives) -> tuple[float, float] | None:
    """(latency ratio, minus the gain) of a point within the budget."""
    value = record.metrics.get(objectives.metric)
    if record.latency is None or not record.is_point or value is None or not is_number(value):
        return None
    latency = record.latency.ratio
    within = objectives.budget is None or latency <= objectives.budget
    return (latency, -objectives.gain(value)) if within else None


SCHEMA_VERSION = 1


def sensitivity_map(file: Path, order: Sequence[str]) -> dict[str, Any] | None:
    """Rows in network order, a column for each knob and value; None where the search measured nothing of the kind.

    A damaged file is left out with a warning: the page does not depend on it.

    Args:
        file: `sensitivity.json`.
        order: layer paths in network order; other names follow.

    Returns:
        `unit`, `baseline_loss`, `columns` as [knob, value], and `rows` as [name, [increase of the loss or None, ...]].
    """
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA_VERSION:
            raise ValueError(f"schema {data['schema']!r}, but this version reads {SCHEMA_VERSION}")
        found = {
            (str(choice["name"]), str(choice["knob"]), _text(choice["value"])): _loss(choice["loss_increase"])
            for choice in data["choices"]
        }
        unit, baseline = str(data.get("unit", "")), float(data["baseline_loss"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(f"{file} cannot be read and is left out: {error!r}", stacklevel=2)
        return None
    return {"unit": unit, "baseline_loss": baseline if math.isfinite(baseline) else None, **_laid_out(found, order)}


def _laid_out(found: Mapping[tuple[str, str, str], float], order: Sequence[str]) -> dict[str, Any]:
    place = {name: i for i, name in enumerate(order)}
    names = sorted({name for name, _, _ in found}, key=lambda name: (place.get(name, len(place)), name))
    columns = sorted({(knob, value) for _, knob, value in found}, key=lambda column: (column[0], _by_size(column[1])))
    cells = [[found.get((name, knob, value)) for knob, value in columns] for name in names]
    rows = [
        [name, [c if c is not None and math.isfinite(c) else None for c in row]]
        for name, row in zip(names, cells, strict=True)
    ]
    return {"columns": [list(column) for column in columns], "rows": rows}


def _loss(value: float | None) -> float:
    """JSON has no NaN: a loss that is null was one."""
    return math.nan if value is None else float(value)


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _by_size(text: str) -> tuple[float, str]:
    """Sorts numbers by size, and text such as "2:4" after them."""
    try:
        return float(text), text
    except ValueError:
        return math.inf, text


Json = dict[str, Any]


def page_data(run: Run) -> Json:
    """The run as the page's data: `info`, `layers`, `names` (of the choices), `trials`, `points` (files), and so on."""
    info = run.info
    paths = [str(layer["path"]) for layer in info.layers]
    names = _choice_names(info, [record.candidate for record in run.records])
    on_front = {record.number for record in run.front.points}
    return {
        "info": _info(info),
        "layers": [dict(layer) for layer in info.layers],
        "names": names,
        "trials": [_trial(record, run, names, record.number in on_front) for record in run.records],
        "baseline": None if run.front.baseline is None else run.front.baseline.number,
        "front": [record.number for record in run.front.points],
        "knee": None if len(run.front.points) < 2 else run.front.knee().number,
        "points": _points(run, paths),
        "sensitivity": sensitivity_map(run.folder.sensitivity, paths),
        "reason": " ".join(filter(None, (likeness_text(info.objectives.metric), run.front.reason, _peer(run)))) or None,
        "hypervolume": hypervolume_history(run.records, info.objectives),
    }


def _peer(run: Run) -> str | None:
    peer = read_peer(run.folder.peer)
    if peer is None or not run.front.points:
        return None
    text = peer_text(peer, run.front)
    return f"{text[0].upper()}{text[1:]}."


def _points(run: Run, paths: list[str]) -> Json:
    """The files of each exported point, by trial number; lists are in the order of `paths`."""
    exported = [record for record in run.records if record.file is not None]
    files = {record.number: read_point_files(run.folder.point(record.name), paths) for record in exported}
    whole = PointFiles() if run.front.baseline is None else files.get(run.front.baseline.number, PointFiles())
    return {
        str(record.number): {
            "shapes": [list(map(list, files[record.number].shapes.get(path, ()))) for path in paths],
            "times": _times(files[record.number], paths),
            "why": [asdict(f) for f in why_not_faster(record.candidate, whole, files[record.number], paths)],
            "answers": list(files[record.number].answers),
        }
        for record in exported
    }


def _times(files: PointFiles, paths: list[str]) -> Json | None:
    if files.times is None:
        return None
    shares = time_shares(files.times, paths)
    return {
        "layers": [shares.layers.get(path) for path in paths],
        "conversions": [shares.conversions_ms, shares.n_conversions],
        "layout": [shares.layout_ms, shares.n_layout],
        "other": [shares.other_ms, shares.n_other],
        "run_ms": files.times.run_ms,
        "n_runs": files.times.n_runs,
    }


def _info(info: RunInfo) -> Json:
    return {
        "task": info.task,
        "task_spec": info.task_spec,
        "metric": info.objectives.metric,
        "direction": info.objectives.direction,
        "is_share": is_share(info.objectives.metric),
        "reference_ms": _number(info.objectives.reference_ms),
        "runtime": info.settings.runtime,
        "budget_ratio": info.objectives.budget,
        "settings": _flat(info.settings.to_dict()),
        "frozen": [dict(item) for item in info.frozen],
        "machine": dict(info.machine),
        "versions": dict(info.versions),
        "command": info.command,
        "started": info.started,
        "digests": {"model": info.model_digest, "space": info.space_digest},
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `distill.alpha: 0.9`."""
    rows: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows |= _flat(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            rows[prefix + key] = "none" if value is None or value == [] else text
    return rows


def _choice_names(info: RunInfo, candidates: Iterable[Candidate]) -> dict[str, list[str]]:
    """The names that any candidate uses, by choice, in network order; a trial then holds values only."""
    order = {str(layer["path"]): i for i, layer in enumerate(info.layers)}
    used: dict[str, set[str]] = {"prune": set(), "drop": set(), "rank": set(), "bits": set(), "sparsity": set()}
    for candidate in candidates:
        used["prune"] |= candidate.prune_ratio.keys()
        used["drop"] |= candidate.drop
        used["rank"] |= candidate.rank_ratio.keys()
        used["bits"] |= candidate.weight_bits.keys()
        used["sparsity"] |= candidate.sparsity.keys()
    return {key: sorted(names, key=lambda name: (order.get(name, len(order)), name)) for key, names in used.items()}


def _choices(candidate: Candidate, names: Mapping[str, list[str]]) -> Json:
    return {
        "prune": [candidate.prune_ratio.get(name, 0) for name in names["prune"]],
        "drop": [int(name in candidate.drop) for name in names["drop"]],
        "rank": [candidate.rank_ratio.get(name) for name in names["rank"]],
        "bits": [candidate.weight_bits.get(name, FULL_BITS) for name in names["bits"]],
        "sparsity": [candidate.sparsity.get(name, 0) for name in names["sparsity"]],
    }


def _trial(record: TrialRecord, run: Run, names: Mapping[str, list[str]], on_front: bool) -> Json:
    info = run.info
    outside = reason_text(record, info.objectives)
    trial: Json = {
        "number": record.number,
        "name": record.name,
        "kind": _kind(record, on_front, outside is not None),
        "state": record.state,
        "origin": record.origin,
        "feasible": record.feasible,
        "fine_tuned": record.fine_tuned,
        "what": candidate_text(record.candidate, len(info.layers)),
        "choices": _choices(record.candidate, names),
        "score": _number(score(record, info.objectives.metric)),
        "ratio": _number(ratio(record)),
        "metrics": _numbers(record.metrics),
        "latency": _latency(record.latency),
        "n_params": record.n_params,
        "n_macs": record.n_macs,
        "size_mib": _number(record.size_mib if record.file is None else record.file.size_mib),
        "predicted": _predicted(record),
        "rungs": [[rung.steps, _number(rung.metrics.get(info.objectives.metric))] for rung in record.rungs],
        "seconds": _numbers(record.seconds),
        "ended": record.ended,
        "file": None if record.file is None else _file(record.file, info.objectives.metric),
    }
    if outside is not None:
        trial["why"] = outside
    elif record.state == "stopped":
        trial["why"] = stopped_text(record)
    if record.state == "failed":
        trial["error"] = record.error or ""
    if record.file is not None:
        trial["commands"] = commands(record, run)
    return trial


def _predicted(record: TrialRecord) -> list[float | None] | None:
    """[ms, low, high] from the latency profile; None where none was used."""
    predicted = record.predicted
    return (
        None if predicted is None else [_number(value) for value in (predicted.ms, predicted.low_ms, predicted.high_ms)]
    )


def _kind(record: TrialRecord, on_front: bool, infeasible: bool) -> str:
    """How a point is drawn; the first that holds."""
    if record.state == "failed":
        return "failed"
    if record.candidate.is_baseline:
        return "baseline"
    if on_front:
        return "front"
    if record.state == "stopped":
        return "stopped"
    if record.origin == "uniform":
        return "uniform"
    return "infeasible" if infeasible else "trial"


def _file(file: FileNumbers, metric: str) -> Json:
    return {
        "metrics": {split: _numbers(metrics) for split, metrics in file.metrics.items()},
        "n_samples": dict(file.n_samples),
        "intervals": {split: interval_of(file, split, metric) for split in file.metrics},
        "latency": _latency(file.latency),
        "max_abs_diff": _number(file.max_abs_diff),
        "agreement": _number(file.agreement),
        "memory_mib": _number(file.memory_mib),
        "sparse_size_mib": _number(file.sparse_size_mib),
        "zip_size_mib": _number(file.zip_size_mib),
    }


def _latency(latency: Latency | None) -> Json | None:
    return None if latency is None else _numbers(asdict(latency))


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: float | None) -> float | None:
    """JSON has no NaN: null."""
    return value if is_number(value) else None
