"""Everything the page shows, as plain JSON values; the page draws and computes nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from autocompress.report.commands import commands
from autocompress.report.history import hypervolume_history
from autocompress.report.interval import interval_of
from autocompress.report.point_files import PointFiles, read_point_files
from autocompress.report.sensitivity import sensitivity_map
from autocompress.report.time_shares import time_shares
from autocompress.report.why import why_not_faster
from autocompress.report.wording import candidate_text, is_number, is_share, likeness_text, reason_text, stopped_text
from autocompress.results.objectives import ratio, score
from autocompress.results.records import FileNumbers, Latency, TrialRecord
from autocompress.results.run_folder import Run, RunInfo
from autocompress.space.candidate import FULL_BITS, Candidate

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
        "reason": " ".join(filter(None, (likeness_text(info.objectives.metric), run.front.reason))) or None,
        "hypervolume": hypervolume_history(run.records, info.objectives),
    }


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
