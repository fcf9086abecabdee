"""The live line of a search: trials done, best feasible metric, front size, time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from autocompress.config import ALL_THAT_FIT
from autocompress.results.objectives import Objectives
from autocompress.results.pareto import front_of
from autocompress.results.records import TrialRecord


class SearchProgress:
    """Shows the state of a search; a context manager, updated with each finished trial.

    Args:
        records: of trials that finished before (a resumed run).
        n_trials: how many there will be, without polishes.
        minutes: until the trials end, or None.
        objectives: of the search.
        console: where to draw; None draws nothing.
    """

    def __init__(
        self,
        records: list[TrialRecord],
        n_trials: int,
        minutes: float | None,
        objectives: Objectives,
        console: Console | None,
    ) -> None:
        self._n_trials, self._minutes = n_trials, minutes
        self._objectives = objectives
        self._n_before = self._n_done = sum(not record.is_trained_longer for record in records)
        self._n_polished = len(records) - self._n_done
        self._n_failed = sum(record.state == "failed" for record in records)
        self._front = self._front_with(records)
        self._begin = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("trials"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=console,
            disable=console is None,
            refresh_per_second=4,
        )
        self._bar = self._progress.add_task(
            "trials",
            total=None if n_trials == ALL_THAT_FIT else n_trials,
            completed=self._n_done,
            status=self.status(),
            left="?",
        )

    def __enter__(self) -> SearchProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def finished(self, record: TrialRecord) -> None:
        """Adds one finished trial."""
        self._n_done += not record.is_trained_longer
        self._n_polished += record.is_trained_longer
        self._n_failed += record.state == "failed"
        self._front = self._front_with([*self._front, record])
        self._progress.update(self._bar, completed=self._n_done, status=self.status(), left=_clock(self.seconds_left()))

    def status(self) -> str:
        """For example `best accuracy 0.9312 within budget, front 5, failed 1`."""
        parts = []
        if self._front:
            best = self._objectives.value(max(map(self._objectives.gain_of, self._front)))
            within = " within budget" if self._objectives.budget is not None else ""
            parts.append(f"best {self._objectives.metric} {best:.4f}{within}")
        else:
            parts.append("none within budget yet")
        parts.append(f"front {len(self._front)}")
        if self._n_polished:
            parts.append(f"polished {self._n_polished}")
        if self._n_failed:
            parts.append(f"failed {self._n_failed}")
        return ", ".join(parts)

    def _front_with(self, records: Sequence[TrialRecord]) -> tuple[TrialRecord, ...]:
        """The feasible front; of the front so far and a new record it is that of all, at a cost that does not grow."""
        front = front_of(records, self._objectives)
        return () if front.reason else front.points

    def seconds_left(self) -> float:
        """By the mean rate of this start, cut at the time limit."""
        elapsed = time.monotonic() - self._begin
        n_done = max(1, self._n_done - self._n_before)
        if self._minutes is not None and self._n_trials == ALL_THAT_FIT:
            return max(0.0, 60 * self._minutes - elapsed)
        left = elapsed / n_done * max(0, self._n_trials - self._n_done)
        return left if self._minutes is None else max(0.0, min(left, 60 * self._minutes - elapsed))


@contextmanager
def step_progress(console: Console | None, what: str) -> Iterator[Callable[[int, int], None]]:
    """A line with a bar and the time left, for a known number of steps; gives the function to call after each.

    Args:
        console: where to draw; None draws nothing.
        what: the counted things, like "files measured".
    """
    columns = (
        SpinnerColumn(),
        TextColumn(what),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=console is None, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda n_done, n_all: progress.update(task, completed=n_done, total=n_all)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
