"""The structured log of a run: one JSON object per line for each start, rung, restart and end of a trial."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray import tune

from autocompress.execution.abort_stopper import AbortStopper
from autocompress.execution.retry_callback import N_FAILURES, RetryCallback, reason

_MAX_REASON = 300


class EventLogCallback(tune.Callback):
    """Writes a line for each event of a trial; a callback of Tune.

    A line has `time` (ISO 8601, UTC), `event`, `trial` (the study's number) and

    - "started": `host`, `pid` of the worker;
    - "rung": `steps`, `latency_ratio`, `metrics`, `seconds` of this rung;
    - "restarted": `reason` (how the worker died, also before the trial began), `n_failures` so far;
    - "complete", "stopped" (early, for its rank), "failed", "unusable": `seconds` since the first start; the last two
      with a `reason`.

    Args:
        file: of the log; lines are added.
        stop: aborts the search when the disk is full.
        retries: says whether a trial that Tune ended after lost workers runs again.
    """

    def __init__(self, file: Path, stop: AbortStopper, retries: RetryCallback) -> None:
        self._file, self._stop, self._retries = file, stop, retries
        self._begin: dict[int, float] = {}
        self._running: set[str] = set()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called when a worker is ready for the trial."""
        self._begin.setdefault(trial.config["number"], time.monotonic())
        self._running.add(trial.trial_id)
        self._add("started", trial)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Called after each rung, and with the end."""
        if "steps" in result:
            rung = {name: result[name] for name in ("steps", "latency_ratio", "metrics")}
            where = {"host": result.get("hostname"), "pid": result.get("pid")}
            self._add("rung", trial, **rung, seconds=round(result.get("time_this_iter_s", 0.0), 3), **where)
        for end in ("failed", "unusable"):
            if end in result:
                self._end(end, trial, reason=_last_line(result[end]))
                return
        if result.get("done"):
            self._end("complete" if "outcome" in result else "stopped", trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called when a worker died and the trial is queued again."""
        why = reason(trial) if trial.trial_id in self._running else f"its worker died before it began: {reason(trial)}"
        self._running.discard(trial.trial_id)
        n_failures = trial.config[N_FAILURES] + trial.run_metadata.num_failures
        self._add("restarted", trial, reason=why, n_failures=n_failures)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called when Tune ends the trial with an error."""
        if not self._retries.again(trial):
            self._end("failed", trial, reason=reason(trial))

    def _end(self, event: str, trial: Any, **values: Any) -> None:
        begin = self._begin.pop(trial.config["number"], time.monotonic())
        self._running.discard(trial.trial_id)
        self._add(event, trial, seconds=round(time.monotonic() - begin, 3), **values)

    def _add(self, event: str, trial: Any, **values: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, "trial": trial.config["number"], **values}, default=str)
        with self._stop.abort_on_full_disk(), self._file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:_MAX_REASON]
