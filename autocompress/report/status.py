"""The state of a run, read from its files while another process may be writing them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from autocompress.config import ALL_THAT_FIT
from autocompress.errors import InputError
from autocompress.files import printable
from autocompress.report.commands import resume_command
from autocompress.results.run_folder import Run, RunFolder
from autocompress.settings_schema import shown

_ENDS = {"complete", "stopped", "failed", "unusable"}
_MAX_SHOWN = 8
_RECENT = 20  # trials whose rate tells the time left


def status_lines(folder: RunFolder, now: datetime | None = None) -> list[str]:
    """The lines of `autocompress status`: driver, trials, front, time left, running trials, the last failure.

    Args:
        folder: of the run.
        now: by default the present.

    Raises:
        InputError: not a run folder, or a damaged file.
    """
    run, driver = folder.read(), folder.driver()
    events = list(events_of(folder))
    lines = [
        f"{folder.path}: {run.info.task}, {_state(run, driver)}",
        f"trials   {_trials(run)}",
        f"front    {_front(run)}",
    ]
    if driver is not None:
        lines += [f"pace     {_pace(run)}", *_running(events, now or datetime.now(UTC))]
    troubles = [event for event in events if event["event"] in ("restarted", "failed", "unusable")]
    if troubles:
        last = troubles[-1]
        lines.append(
            f"trouble  {len(troubles)} in all; last: trial {last['trial']} {last['event']}, {last.get('reason')}"
        )
    return [printable(line) for line in lines]


def _state(run: Run, driver: str | None) -> str:
    n_done, n_trials = _n_explored(run), run.info.settings.n_trials
    if driver is not None:
        return f"{'searching' if n_done < n_trials else 'polishing or measuring the front'} ({driver})"
    if n_done >= n_trials and run.folder.report.is_file():
        return "done"
    return f"not running; {resume_command(run.folder.path)} continues it"


def _trials(run: Run) -> str:
    n_failed = sum(record.state == "failed" for record in run.records)
    n_explored, n_trials = _n_explored(run), run.info.settings.n_trials
    n_longer = len(run.records) - n_explored
    parts = [str(n_explored) if n_trials == ALL_THAT_FIT else f"{n_explored} of {n_trials}"]
    parts += [f"{n_longer} trained longer"] if n_longer else []
    return ", ".join([*parts, f"{n_failed} failed"] if n_failed else parts)


def _n_explored(run: Run) -> int:
    return sum(not record.is_trained_longer for record in run.records)


def _front(run: Run) -> str:
    front = run.front
    if front.reason or not front.points:
        return front.reason or "no trial yet"
    best = max(front.points, key=front.objectives.gain_of)
    return f"{len(front.points)} points, best {front.metric} {front.objectives.score_of(best):.4f} ({best.name})"


def _pace(run: Run) -> str:
    ends = sorted(record.ended for record in run.records)[-_RECENT:]
    if len(ends) < 3 or ends[-1] <= ends[0]:
        return "not known yet"
    seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
    pace, n_trials = f"{3600 / seconds:.0f} trials an hour", run.info.settings.n_trials
    if n_trials == ALL_THAT_FIT:
        return f"{pace}, as many as fit into {run.info.settings.minutes:g} minutes"
    return f"{pace}, about {_duration(seconds * (n_trials - _n_explored(run)))} left"


def _running(events: list[dict[str, Any]], now: datetime) -> list[str]:
    """A line for each trial that has started and not ended, the oldest first."""
    last: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["event"] in _ENDS:
            last.pop(event["trial"], None)
        else:
            last[event["trial"]] = {**last.get(event["trial"], {}), **event}
    lines = [f"running  trial {number}, {_doing(event, now)}" for number, event in last.items()]
    more = [f"         and {len(lines) - _MAX_SHOWN} more"] if len(lines) > _MAX_SHOWN else []
    return lines[:_MAX_SHOWN] + more


def _doing(event: Mapping[str, Any], now: datetime) -> str:
    since = _duration((now - datetime.fromisoformat(event["time"])).total_seconds())
    where = f" on {event['host']} (process {event.get('pid', 'unknown')})" if "host" in event else ""
    what = f"after {event['steps']} steps" if "steps" in event else "first rung"
    return f"{'waits for a worker' if event['event'] == 'restarted' else what}{where}, {since} ago"


def events_of(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """The log's lines; a last one that is being written is left out."""
    if not folder.events.is_file():
        return
    try:
        lines = folder.events.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{folder.events} must be readable UTF-8 text, but: {error}") from error
    for i, line in enumerate(lines):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError) as error:
            if i < len(lines) - 1:
                raise InputError(f"{folder.events}, line {i + 1} is not JSON: {error}") from error
            return
        if not _is_event(event):
            raise InputError(f"{folder.events}, line {i + 1} is no event: {shown(event)}; remove the line")
        yield event


def _is_event(event: object) -> bool:
    """Whether it has what every event has: a name, a trial and a time with its zone."""
    if not isinstance(event, dict) or type(event.get("event")) is not str or type(event.get("trial")) is not int:
        return False
    try:
        return datetime.fromisoformat(event["time"]).tzinfo is not None
    except (KeyError, TypeError, ValueError):
        return False


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
