"""A search against recorded evaluations, in virtual time, with any number of simulated workers."""

from __future__ import annotations

import gzip
import heapq
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from autocompress.errors import InputError
from autocompress.results.records import Latency, Rung, TrialRecord
from autocompress.sampling.study import SearchStudy
from autocompress.space.candidate import Candidate

_FIGURES = ("latency_ratio", "latency_spread", "latency_ms", "size_mib", "n_params", "n_macs")


@dataclass(frozen=True)
class Evaluation:
    """What one candidate gave when it was really evaluated.

    Attributes:
        candidate: what was asked.
        latency: as measured.
        rungs: metrics after each rung, in order; all that a search of this candidate could see.
        seconds: worker-seconds from the start of the trial to the end of each rung.
        size_mib, n_params, n_macs: of the compressed model.
    """

    candidate: Candidate
    latency: Latency
    rungs: tuple[Rung, ...]
    seconds: tuple[float, ...]
    size_mib: float = float("nan")
    n_params: int = 0
    n_macs: int = 0


class EarlyStopping(Protocol):
    """Decides after each rung whether a trial continues; see `ParetoEarlyStopping`."""

    def should_continue(self, trial: str, steps: int, score: float, ratio: float) -> bool:
        """Whether the trial, which was just judged after `steps` fine-tune steps, gets the next rung."""


def replay(
    study: SearchStudy,
    evaluate: Callable[[Candidate], Evaluation],
    n_trials: int,
    n_workers: int = 1,
    stopping: EarlyStopping | None = None,
    driver_counts: bool = False,
) -> list[TrialRecord]:
    """Runs a search without running anything: a trial takes the seconds that its evaluation took.

    Equal times are served in the order in which the workers were, so that a replay gives the same trials each time.

    Args:
        study: asked and told, like that of a real search.
        evaluate: looks the candidate up; a `KeyError` of its makes the trial a failed one.
        n_trials: complete, stopped or failed trials after which the replay ends.
        n_workers: simulated workers.
        stopping: decides after each rung but the last; None lets every trial finish.
        driver_counts: the real seconds of asking and telling pass in virtual time too, one call after the other, as
            on a driver that has one core.

    Returns:
        The records in the order in which they ended; `started` and `ended` are virtual seconds.
    """
    run = _Replay(study, evaluate, stopping, driver_counts)
    n_asked = 0
    for worker in range(n_workers):
        n_asked += n_asked < n_trials and run.begin(worker, 0.0)
    while run.events:
        now, free = run.step()
        if free is not None and n_asked < n_trials:
            n_asked += run.begin(free, now)
    return run.ended


class _Replay:
    """The workers' state between two events."""

    def __init__(
        self,
        study: SearchStudy,
        evaluate: Callable[[Candidate], Evaluation],
        stopping: EarlyStopping | None,
        driver_counts: bool,
    ) -> None:
        self._study, self._evaluate, self._stopping, self._driver_counts = study, evaluate, stopping, driver_counts
        self._driver_free = 0.0
        self._running: dict[int, tuple[TrialRecord, Evaluation]] = {}
        self.events: list[tuple[float, int, int]] = []  # (virtual time, worker, index of the rung that ends then)
        self.ended: list[TrialRecord] = []

    def begin(self, worker: int, now: float) -> bool:
        """Asks for the worker's next trial; False when there is none."""
        while True:
            asked, now = self._timed(now, self._study.ask)
            if asked is None:
                return False
            candidate = asked.candidate
            record = TrialRecord(asked.number, "failed", asked.origin, candidate, started=now)
            try:
                evaluation = self._evaluate(candidate)
            except KeyError as error:
                self._tell(replace(record, ended=now, error=f"no recorded evaluation: {error}"), now)
                continue
            self._running[worker] = record, evaluation
            heapq.heappush(self.events, (now + evaluation.seconds[0], worker, 0))
            return True

    def step(self) -> tuple[float, int | None]:
        """Lets time pass to the end of the next rung; returns then, and the worker if it is free now."""
        now, worker, i = heapq.heappop(self.events)
        record, evaluation = self._running[worker]
        last = i == len(evaluation.rungs) - 1
        rung = evaluation.rungs[i]
        value = rung.metrics[self._study.objectives.metric]
        if not last and (
            self._stopping is None
            or self._stopping.should_continue(record.name, rung.steps, value, evaluation.latency.ratio)
        ):
            heapq.heappush(self.events, (now + evaluation.seconds[i + 1] - evaluation.seconds[i], worker, i + 1))
            return now, None
        done = _judged(record, evaluation, i, now, self._study.objectives.metric)
        del self._running[worker]
        return self._tell(self._study.judged(done), now), worker

    def _tell(self, record: TrialRecord, now: float) -> float:
        self.ended.append(record)
        return self._timed(now, lambda: self._study.tell(record))[1]

    def _timed(self, now: float, call: Callable[[], Any]) -> tuple[Any, float]:
        begin = time.perf_counter()
        result = call()
        if self._driver_counts:
            self._driver_free = max(now, self._driver_free) + time.perf_counter() - begin
            now = self._driver_free
        return result, now


def _judged(record: TrialRecord, evaluation: Evaluation, i: int, now: float, metric: str) -> TrialRecord:
    """The record of a trial that ends after rung `i`: the best rung counts, as in a real trial."""
    rungs = evaluation.rungs[: i + 1]
    best = max(rungs, key=lambda rung: rung.metrics[metric])
    return replace(
        record,
        state="complete" if i == len(evaluation.rungs) - 1 else "stopped",
        metrics=best.metrics,
        latency=evaluation.latency,
        fine_tuned=i > 0,
        rungs=rungs,
        seconds={"evaluate": evaluation.seconds[i]},
        size_mib=evaluation.size_mib,
        n_params=evaluation.n_params,
        n_macs=evaluation.n_macs,
        ended=now,
    )


def write_table(path: Path, evaluations: Iterable[Evaluation]) -> None:
    """Writes evaluations as CSV, compressed where the name ends in .gz: one row each, `accuracy@20` after 20 steps."""
    rows = [_row(evaluation) for evaluation in evaluations]
    text = pd.DataFrame(rows).to_csv(index=False, float_format="%.6g")
    # without a time of writing the same table is the same file
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())


def read_table(path: Path) -> dict[str, Evaluation]:
    """Reads what `write_table` wrote, by digest of the candidate.

    Raises:
        InputError: the file is missing, or a column of it is.
    """
    if not path.is_file():
        raise InputError(f"a table of evaluations must exist, but {path} does not")
    frame = pd.read_csv(path)
    steps = sorted({int(name.partition("@")[2]) for name in frame.columns if "@" in name})
    missing = [name for name in ("candidate", *_FIGURES) if name not in frame.columns]
    if missing or not steps:
        raise InputError(f"a table of evaluations has the columns {missing or 'METRIC@STEPS'}, but {path} has not")
    evaluations = [_evaluation(row, steps) for row in frame.to_dict("records")]
    return {evaluation.candidate.digest: evaluation for evaluation in evaluations}


def _row(evaluation: Evaluation) -> dict[str, Any]:
    latency = evaluation.latency
    row: dict[str, Any] = {
        "candidate": evaluation.candidate.to_json(),
        "latency_ratio": latency.ratio,
        "latency_spread": latency.spread,
        "latency_ms": latency.ms,
        "size_mib": evaluation.size_mib,
        "n_params": evaluation.n_params,
        "n_macs": evaluation.n_macs,
    }
    for rung, seconds in zip(evaluation.rungs, evaluation.seconds, strict=True):
        row |= {f"{name}@{rung.steps}": value for name, value in rung.metrics.items()}
        row[f"seconds@{rung.steps}"] = seconds
    return row


def _evaluation(row: dict[Any, Any], steps: list[int]) -> Evaluation:
    reached = [n for n in steps if pd.notna(row[f"seconds@{n}"])]
    names = {str(name).partition("@")[0] for name in row if "@" in str(name)} - {"seconds"}
    return Evaluation(
        candidate=Candidate.from_dict(json.loads(row["candidate"])),
        latency=Latency(row["latency_ratio"], row["latency_spread"], row["latency_ms"], 0),
        rungs=tuple(Rung(n, {name: float(row[f"{name}@{n}"]) for name in sorted(names)}) for n in reached),
        seconds=tuple(float(row[f"seconds@{n}"]) for n in reached),
        size_mib=row["size_mib"],
        n_params=int(row["n_params"]),
        n_macs=int(row["n_macs"]),
    )


def busy_share(records: Iterable[TrialRecord], n_workers: int) -> float:
    """Share of the workers' time from start to last end that trials took."""
    records = list(records)
    end = max(record.ended for record in records)
    return sum(record.ended - record.started for record in records) / (end * n_workers)
