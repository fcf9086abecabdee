"""Everything the page shows, as plain JSON values; the page draws and computes nothing else."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from autocompress.candidate import FULL_BITS, Candidate
from autocompress.pareto import hypervolume, ratio, score
from autocompress.records import FileNumbers, Latency, TrialRecord
from autocompress.report.interval import interval_of
from autocompress.report.wording import candidate_text, failure_text, is_number, is_share, over_budget, over_budget_text
from autocompress.run_folder import Run, RunInfo

Json = dict[str, Any]


def page_data(run: Run) -> Json:
    """The run as the page's data: `info`, `layers`, `names` (of the choices), `trials`, `hypervolume`, `reason`."""
    info = run.info
    names = _choice_names(info, [record.candidate for record in run.records])
    on_front = {record.number for record in run.front.points}
    return {
        "info": _info(info),
        "layers": [dict(layer) for layer in info.layers],
        "names": names,
        "trials": [_trial(record, run, names, record.number in on_front) for record in run.records],
        "baseline": None if run.front.baseline is None else run.front.baseline.number,
        "front": [record.number for record in run.front.points],
        "reason": run.front.reason,
        "hypervolume": hypervolume_history(run.records, info.metric, info.budget_ratio),
    }


def _info(info: RunInfo) -> Json:
    return {
        "task": info.task,
        "task_spec": info.task_spec,
        "metric": info.metric,
        "is_share": is_share(info.metric),
        "reference_ms": _number(info.reference_ms),
        "budget_ratio": info.budget_ratio,
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
    used: dict[str, set[str]] = {"prune": set(), "drop": set(), "rank": set(), "bits": set()}
    for candidate in candidates:
        used["prune"] |= candidate.prune_ratio.keys()
        used["drop"] |= candidate.drop
        used["rank"] |= candidate.rank_ratio.keys()
        used["bits"] |= candidate.weight_bits.keys()
    return {key: sorted(names, key=lambda name: (order.get(name, len(order)), name)) for key, names in used.items()}


def _choices(candidate: Candidate, names: Mapping[str, list[str]]) -> Json:
    return {
        "prune": [candidate.prune_ratio.get(name, 0) for name in names["prune"]],
        "drop": [int(name in candidate.drop) for name in names["drop"]],
        "rank": [candidate.rank_ratio.get(name) for name in names["rank"]],
        "bits": [candidate.weight_bits.get(name, FULL_BITS) for name in names["bits"]],
    }


def _trial(record: TrialRecord, run: Run, names: Mapping[str, list[str]], on_front: bool) -> Json:
    info = run.info
    trial: Json = {
        "number": record.number,
        "name": record.name,
        "kind": _kind(record, on_front, info.budget_ratio),
        "state": record.state,
        "origin": record.origin,
        "feasible": record.feasible,
        "fine_tuned": record.fine_tuned,
        "what": candidate_text(record.candidate, len(info.layers)),
        "choices": _choices(record.candidate, names),
        "score": _number(score(record, info.metric)),
        "ratio": _number(ratio(record)),
        "metrics": _numbers(record.metrics),
        "latency": _latency(record.latency),
        "n_params": record.n_params,
        "n_macs": record.n_macs,
        "size_mib": _number(record.size_mib if record.file is None else record.file.size_mib),
        "rungs": [[rung.steps, _number(rung.metrics.get(info.metric))] for rung in record.rungs],
        "seconds": _numbers(record.seconds),
        "ended": record.ended,
        "file": None if record.file is None else _file(record.file, info.metric),
    }
    if record.state == "failed":
        trial |= {"why": failure_text(record), "error": record.error or ""}
    elif info.budget_ratio is not None and not record.candidate.is_baseline and over_budget(record, info.budget_ratio):
        trial["why"] = over_budget_text(record, info.budget_ratio)
    if record.file is not None:
        trial["commands"] = _commands(record, run)
    return trial


def _kind(record: TrialRecord, on_front: bool, budget_ratio: float | None) -> str:
    """How a point is drawn; the first that holds."""
    if record.state == "failed":
        return "failed"
    if record.candidate.is_baseline:
        return "baseline"
    if on_front:
        return "front"
    if record.origin == "uniform":
        return "uniform"
    return "infeasible" if over_budget(record, budget_ratio) else "trial"


def _file(file: FileNumbers, metric: str) -> Json:
    return {
        "metrics": {split: _numbers(metrics) for split, metrics in file.metrics.items()},
        "n_samples": dict(file.n_samples),
        "intervals": {split: interval_of(file, split, metric) for split in file.metrics},
        "latency": _latency(file.latency),
        "max_abs_diff": _number(file.max_abs_diff),
        "agreement": _number(file.agreement),
    }


def _commands(record: TrialRecord, run: Run) -> Json:
    """What to type to leave with this point; paths are quoted for Python and for a shell."""
    folder, point = str(run.folder.path), str(run.folder.point(record.name))
    lines = ["import autocompress", ""]
    if run.info.task_spec is not None:
        lines.append(f"task = autocompress.load_task({run.info.task_spec!r})")
    lines.append(f"model = autocompress.load({point!r}, task)")
    return {
        "folder": point,
        "load": "\n".join(lines),
        "pick": f"autocompress pick {shlex.quote(folder)} --trial {record.number} -o model/",
    }


def hypervolume_history(
    records: Iterable[TrialRecord], metric: str, budget_ratio: float | None
) -> list[tuple[int, float, float]]:
    """How the front grew: (trials ended, seconds since the start, hypervolume) after each trial that ended.

    From the search's own numbers: the exported files' exist for the last front only, and one curve needs one clock.
    The reference point is (1.0, 0.0), as in `ParetoFront.hypervolume`.
    """
    front = np.empty((0, 2))
    area, history = 0.0, []
    for n_ended, record in enumerate(sorted(records, key=lambda record: record.ended), start=1):
        cost = _search_cost(record, metric, budget_ratio)
        if cost is not None and not (front <= cost).all(axis=1).any():
            front = np.vstack([front[~(front >= cost).all(axis=1)], cost])
            area = hypervolume(front, (1.0, 0.0))
        history.append((n_ended, record.ended, area))
    return history


def _search_cost(record: TrialRecord, metric: str, budget_ratio: float | None) -> tuple[float, float] | None:
    """(latency ratio, -metric) of a complete trial within the budget."""
    value = record.metrics.get(metric)
    if record.state != "complete" or record.latency is None or value is None or not is_number(value):
        return None
    latency = record.latency.ratio
    return (latency, -value) if latency <= (math.inf if budget_ratio is None else budget_ratio) else None


def _latency(latency: Latency | None) -> Json | None:
    return None if latency is None else _numbers(asdict(latency))


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: float | None) -> float | None:
    """JSON has no NaN: null."""
    return value if is_number(value) else None
