"""Joins the study to Ray Tune: every suggestion is asked of the study, every result is told to it."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from autocompress.config import ALL_THAT_FIT
from autocompress.errors import StorageError, WorkerError
from autocompress.execution.abort_stopper import AbortStopper
from autocompress.execution.retry_callback import N_FAILURES
from autocompress.results.records import Latency, Predicted, Rung, State, TrialRecord, append_record
from autocompress.sampling.early_stopping import ParetoEarlyStopping
from autocompress.sampling.patience import Patience
from autocompress.sampling.study import SearchStudy
from autocompress.space.candidate import Candidate

Listener = Callable[[TrialRecord], None]


class OptunaSearcher(Searcher):
    """See `ray.tune.search.Searcher`. The study on disk is the state, so that Tune's own snapshots are empty.

    Args:
        study: asked and told.
        records: `trials.jsonl`, to which each finished trial is added.
        clock: seconds since the run's first start.
        listener: told of each finished trial.
        stop: told when the disk takes no more, or a worker can run no trial; nothing is asked or told after that.
        stopping: knows which trials it has stopped early; None stops none.
        patience: says when the search gains nothing more; None goes on.
        predicted: what is expected of a candidate's latency, or None.
        n_trials: how many trials to ask the study for; those that Tune gave up and that run again are not counted.
    """

    def __init__(
        self,
        study: SearchStudy,
        records: Path,
        clock: Callable[[], float],
        listener: Listener,
        stop: AbortStopper | None = None,
        stopping: ParetoEarlyStopping | None = None,
        patience: Patience | None = None,
        predicted: Callable[[Candidate], Predicted | None] = lambda candidate: None,
        n_trials: int = ALL_THAT_FIT,
    ) -> None:
        super().__init__()
        self._study, self._records, self._clock, self._listener = study, records, clock, listener
        self._stop, self._stopping, self._patience = stop or AbortStopper(), stopping, patience
        self._predicted, self._n_left = predicted, n_trials
        self._running: dict[str, TrialRecord] = {}
        self._again: deque[tuple[TrialRecord, int]] = deque()  # and how often each lost its worker
        self.seconds = 0.0

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's config; None while a running trial may have to run again, `FINISHED` when none is left."""
        begin = time.perf_counter()
        found = None if self._stop.reason is not None else self._again.popleft() if self._again else self._ask_study()
        if found is None:
            waits = self._running and self._stop.reason is None
            return None if waits else Searcher.FINISHED  # type: ignore[return-value]  # as Tune documents it
        record, n_failures = found
        self._running[trial_id] = record
        self.seconds += time.perf_counter() - begin
        return {
            "number": record.number,
            "name": record.name,
            "candidate": record.candidate.to_json(),
            N_FAILURES: n_failures,
        }

    def _ask_study(self) -> tuple[TrialRecord, int] | None:
        """A new trial, which has not failed yet; None when there is none, now and later."""
        if self._n_left == 0 or (self._patience is not None and self._patience.over):
            return None
        asked = None
        with self._stop.abort_on_full_disk():
            asked = self._study.ask()
        if asked is None:
            self._n_left = 0  # the space is exhausted; asking again would only fill the study with repeats
            return None
        self._n_left -= 1
        number, candidate, origin = asked
        predicted = self._predicted(candidate)
        return TrialRecord(number, "failed", origin, candidate, started=self._clock(), predicted=predicted), 0

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Rungs of a running trial are not told to the study."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the study how the trial ended; a trial cut off by a time limit stays open and runs again on resume."""
        if error:
            return  # `on_trial_lost` says more
        result = result or {}
        asked = self._running.pop(trial_id)
        if "outcome" in result:
            record = self._ended(asked, "complete", result["outcome"])
        elif self._stopping is not None and trial_id in self._stopping.stopped:
            record = self._ended(asked, "stopped", result["so_far"])
        elif "failed" in result:
            record = replace(asked, error=str(result["failed"]))
        else:
            if "unusable" in result:
                self._stop.abort(WorkerError(str(result["unusable"])))
            return
        self._tell(record)

    def on_trial_lost(self, trial_id: str, n_failures: int, reason: str, again: bool) -> None:
        """Takes a trial back that Tune gave up, to be given out again or as a failed one.

        Args:
            trial_id: in Tune.
            n_failures: how often it lost its worker.
            reason: how it did the last time.
            again: whether it has retries left.
        """
        asked = self._running.pop(trial_id)
        if again:
            self._again.append((asked, n_failures))
        else:
            self._tell(replace(asked, error=f"the worker process died, and so did every retry: {reason}"))

    def _tell(self, record: TrialRecord) -> None:
        if isinstance(self._stop.reason, StorageError):
            return  # what is on disk is whole and stays so; the trial runs again on resume
        begin = time.perf_counter()
        record = replace(record, ended=self._clock())
        with self._stop.abort_on_full_disk():
            self._study.tell(record)
            append_record(self._records, record)
        self.seconds += time.perf_counter() - begin
        if self._patience is not None:
            self._patience.update(record)
        self._listener(record)

    def _ended(self, asked: TrialRecord, state: State, text: str) -> TrialRecord:
        """The record of what a worker reported; a failed one where that makes no sense."""
        try:
            return self._study.judged(_with_outcome(asked, state, json.loads(text)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return replace(asked, error=f"the worker's report makes no sense ({error}): {str(text)[:200]}")

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles the searcher into its own folder, which nobody reads: the study is the state."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is on disk already."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


def _with_outcome(asked: TrialRecord, state: State, outcome: dict[str, Any]) -> TrialRecord:
    latency = Latency(**outcome.pop("latency"))
    rungs = tuple(Rung(**rung) for rung in outcome.pop("rungs"))
    if not latency.ratio > 0:
        raise ValueError(f"a latency ratio must be positive, but is {latency.ratio}")
    return replace(asked, state=state, latency=latency, rungs=rungs, **outcome)
