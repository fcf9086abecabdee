"""The state of a run, read from its files while another process may be writing them: as lines, and as plain values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from autocompress.config import ALL_THAT_FIT
from autocompress.errors import InputError
from autocompress.files import printable
from autocompress.report.commands import resume_command
from autocompress.results.columns import row
from autocompress.results.run_folder import Run, RunFolder
from autocompress.settings_schema import shown

SCHEMA_VERSION = 1
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
    troubles = _troubles(events)
    if troubles:
        last = troubles[-1]
        lines.append(
            f"trouble  {len(troubles)} in all; last: trial {last['trial']} {last['event']}, {last.get('reason')}"
        )
    return [printable(line) for line in lines]


def status_data(folder: RunFolder, now: datetime | None = None) -> dict[str, Any]:
    """The same as `status_lines` as plain JSON values; `docs/agents.md` says what they mean.

    Raises:
        InputError: see `status_lines`.
    """
    run, driver = folder.read(), folder.driver()
    events, settings, front = list(events_of(folder)), run.info.settings, run.front
    now, seconds = now or datetime.now(UTC), _seconds_a_trial(run)
    limited = settings.n_trials != ALL_THAT_FIT
    best = max(front.points, key=front.objectives.gain_of, default=None)
    troubles = _troubles(events)
    return {
        "schema": SCHEMA_VERSION,
        "run": str(folder.path),
        "task": run.info.task,
        "state": _state_word(run, driver),
        "driver": driver,
        "n_trials": _n_explored(run),
        "n_trials_wanted": settings.n_trials if limited else None,
        "minutes_wanted": settings.minutes,
        "n_trained_longer": len(run.records) - _n_explored(run),
        "n_failed": sum(record.state == "failed" for record in run.records),
        "seconds_a_trial": seconds,
        "front": {
            "n_points": len(front.points),
            "metric": front.metric,
            "best": None if best is None else row(best, front.metric),
            "reason": front.reason,
            "is_measured": bool(front.points) and all(point.file is not None for point in front.points),
        },
        "running": [
            {"trial": number, **_what(event), "seconds_ago": _seconds_ago(event, now)}
            for number, event in (_started(events) if driver is not None else {}).items()
        ],
        "n_troubles": len(troubles),
        "last_trouble": {key: troubles[-1].get(key) for key in ("trial", "event", "reason")} if troubles else None,
    }


def _state_word(run: Run, driver: str | None) -> str:
    """`searching`, `ending` (polishing or measuring the front), `done`, or `stopped`, which `resume` continues."""
    n_done, n_trials = _n_explored(run), run.info.settings.n_trials
    if driver is not None:
        return "searching" if n_done < n_trials else "ending"
    return "done" if n_done >= n_trials and run.folder.report.is_file() else "stopped"


def _state(run: Run, driver: str | None) -> str:
    word = _state_word(run, driver)
    if driver is not None:
        return f"{'polishing or measuring the front' if word == 'ending' else word} ({driver})"
    return word if word == "done" else f"not running; {resume_command(run.folder.path)} continues it"


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
    seconds = _seconds_a_trial(run)
    if seconds is None:
        return "not known yet"
    pace, n_trials = f"{3600 / seconds:.0f} trials an hour", run.info.settings.n_trials
    if n_trials == ALL_THAT_FIT:
        return f"{pace}, as many as fit into {run.info.settings.minutes:g} minutes"
    return f"{pace}, about {_duration(seconds * (n_trials - _n_explored(run)))} left"


def _seconds_a_trial(run: Run) -> float | None:
    """Between the ends of the last trials; None when they are too few."""
    ends = sorted(record.ended for record in run.records)[-_RECENT:]
    return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) >= 3 and ends[-1] > ends[0] else None


def _running(events: list[dict[str, Any]], now: datetime) -> list[str]:
    """A line for each trial that has started and not ended, the oldest first."""
    lines = [f"running  trial {number}, {_doing(event, now)}" for number, event in _started(events).items()]
    more = [f"         and {len(lines) - _MAX_SHOWN} more"] if len(lines) > _MAX_SHOWN else []
    return lines[:_MAX_SHOWN] + more


def _started(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """For each trial that has started and not ended what its events say, the last one on top."""
    last: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["event"] in _ENDS:
            last.pop(event["trial"], None)
        else:
            last[event["trial"]] = {**last.get(event["trial"], {}), **event}
    return last


def _troubles(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] in ("restarted", "failed", "unusable")]


def _what(event: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial does that runs: its last event, its steps of training, and where."""
    return {"event": event["event"], **{key: event.get(key) for key in ("steps", "host", "pid")}}


def _seconds_ago(event: Mapping[str, Any], now: datetime) -> float:
    return (now - datetime.fromisoformat(event["time"])).total_seconds()


def _doing(event: Mapping[str, Any], now: datetime) -> str:
    since = _duration(_seconds_ago(event, now))
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
