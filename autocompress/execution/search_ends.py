"""How a search ends that a signal stopped, or whose trials all failed: what is written, and what is said."""

from __future__ import annotations

import shlex
import signal
from collections import Counter
from collections.abc import Sequence

from autocompress.config import ALL_THAT_FIT, SearchSettings
from autocompress.errors import MeasurementError, StoppedError
from autocompress.report.files import write_front_table, write_report_page
from autocompress.results.records import WHOLE_MODEL, TrialRecord
from autocompress.results.run_folder import RunFolder


def stopped_by(number: int, folder: RunFolder, settings: SearchSettings, n_done: int) -> StoppedError:
    """What is said at the end of a search that a signal stopped.

    Args:
        number: of the signal.
        folder: of the run.
        settings: of this start.
        n_done: trials that ended.
    """
    fits = settings.n_trials == ALL_THAT_FIT
    all_of = "" if fits else f" of {settings.n_trials}"
    more = f" --minutes {settings.minutes or 10:g}" if fits else ""
    resume_it = f"autocompress resume {shlex.quote(str(folder.path))}{more}"
    name = signal.Signals(number).name
    return StoppedError(f"stopped by {name} after {n_done}{all_of} trials; `{resume_it}` continues it", number)


def ended_at_once(reason: StoppedError, folder: RunFolder) -> StoppedError:
    """Writes the tables without measuring files, which takes longer than who ends a process waits."""
    run = folder.read()
    write_front_table(run)
    write_report_page(run)
    reason.front = run.front
    return reason


def refuse_all_failed(records: Sequence[TrialRecord]) -> None:
    """A search in which nothing worked is no success.

    Raises:
        MeasurementError: all trials failed; says the most frequent reason.
    """
    tried = [record for record in records if record.origin not in ("baseline", WHOLE_MODEL)]
    if not tried or any(record.state != "failed" for record in tried):
        return
    reasons = Counter((record.error or "no reason").strip().splitlines()[-1] for record in tried)
    ((reason, n_failed),) = reasons.most_common(1)
    raise MeasurementError(f"all {len(tried)} trials failed, {n_failed} of them with: {reason[:500]}")
