"""Joins the queue of trials to Ray Tune: every suggestion comes from it, every result goes to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from autocompress.errors import WorkerError
from autocompress.execution.trial_queue import Assignment, TrialQueue


class OptunaSearcher(Searcher):
    """See `ray.tune.search.Searcher`. The study on disk is the state, so that Tune's own snapshots are empty.

    Args:
        queue: of the search.
    """

    def __init__(self, queue: TrialQueue) -> None:
        super().__init__()
        self._queue = queue
        self._running: dict[str, Assignment] = {}
        self._so_far: dict[str, str] = {}  # what running trials have reached

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's config; None while a running trial may bring another, `FINISHED` when none is left."""
        assignment = self._queue.next()
        if assignment is None:
            waits = self._running and self._queue.stop.reason is None
            return None if waits else Searcher.FINISHED  # type: ignore[return-value]  # as Tune documents it
        self._running[trial_id] = assignment
        return assignment.config()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keeps the last rung of a running trial; the study gets its record at the end."""
        if "so_far" in result:
            self._so_far[trial_id] = result["so_far"]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the study how the trial ended.

        A trial that ended after a rung but before its last was stopped early, or by the end of the search's time: its
        best rung counts. One that Ctrl-C interrupted, or that ended before its first rung, runs again on resume.
        """
        if error:
            return  # `on_trial_lost` says more
        result = result or {}
        assignment = self._running.pop(trial_id)
        so_far = result.get("so_far", self._so_far.pop(trial_id, None))
        if "outcome" in result:
            self._queue.ended(assignment, "complete", result["outcome"])
        elif "failed" in result:
            self._queue.failed(assignment, str(result["failed"]))
        elif "unusable" in result:
            self._queue.stop.abort(WorkerError(str(result["unusable"])))
        elif so_far is not None and (result.get("done") or not self._queue.limits.clock.trains):
            self._queue.ended(assignment, "stopped", so_far)

    def on_experiment_end(self) -> None:
        """Tells the study the best rungs of trials that still ran when the time was over; Tune does not report them."""
        if not self._queue.limits.clock.trains:
            for trial_id in list(self._running):
                self.on_trial_complete(trial_id)

    def on_trial_lost(self, trial_id: str, n_failures: int, reason: str, again: bool) -> None:
        """Takes back a trial whose worker was lost: queues it again, or records it as failed.

        Args:
            trial_id: in Tune.
            n_failures: how often it lost its worker.
            reason: how it did the last time.
            again: whether it has retries left.
        """
        assignment = self._running.pop(trial_id)
        self._so_far.pop(trial_id, None)
        if again:
            self._queue.give_back(assignment, n_failures)
        else:
            self._queue.failed(assignment, f"the worker process died, and so did every retry: {reason}")

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles the searcher into its own folder, which nobody reads: the study is the state."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is on disk already."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
