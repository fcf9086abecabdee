"""The structured log of a run: one JSON object per line for each start, rung, restart and end of a trial."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray import tune

from autocompress.automl.stop import Stop

_MAX_REASON = 300


class EventLog(tune.Callback):
    """Writes what happens to each trial as it happens; a callback of Tune.

    A line has `time` (ISO 8601, UTC), `event`, `trial` (the study's number) and

    - "started": `host`, `pid` of the worker;
    - "rung": `steps`, `latency_ratio`, `metrics`, `seconds` of this rung;
    - "restarted": `reason` (how the worker died), `n_failures` so far;
    - "complete", "stopped" (early, for its rank), "failed", "unusable": `seconds` since the first start; the last two
      with a `reason`.

    Args:
        file: of the log; lines are added.
        stop: told when the disk does not take what is written.
    """

    def __init__(self, file: Path, stop: Stop) -> None:
        self._file, self._stop = file, stop
        self._begin: dict[str, float] = {}
        self._trials: dict[str, Any] = {}

    def reason(self, trial_id: str) -> str:
        """How the worker of a running trial died last, in one line."""
        return _why(self._trials[trial_id]) if trial_id in self._trials else "unknown"

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called when a worker is ready for the trial."""
        self._begin.setdefault(trial.trial_id, time.monotonic())
        self._trials[trial.trial_id] = trial
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
        elif "so_far" in result and result.get("done"):
            self._end("stopped", trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called when a worker died and the trial is queued again."""
        self._add("restarted", trial, reason=_why(trial), n_failures=trial.run_metadata.num_failures)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called when the last retry has failed too."""
        self._end("failed", trial, reason=_why(trial))

    def _end(self, event: str, trial: Any, **values: Any) -> None:
        begin = self._begin.pop(trial.trial_id, time.monotonic())
        self._trials.pop(trial.trial_id, None)
        self._add(event, trial, seconds=round(time.monotonic() - begin, 3), **values)

    def _add(self, event: str, trial: Any, **values: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, "trial": trial.config["number"], **values}, default=str)
        with self._stop.on_full_disk(), self._file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _why(trial: Any) -> str:
    """The last failure that Tune noted of a trial, in one line; it says who died and how."""
    file = trial.error_file
    text = Path(file).read_text(encoding="utf-8") if file is not None and Path(file).is_file() else "unknown"
    last = text.rpartition("Failure # ")[2]
    return " ".join(last.split())[:_MAX_REASON]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:_MAX_REASON]
