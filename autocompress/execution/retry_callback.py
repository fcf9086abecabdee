"""What becomes of a trial that Ray Tune has given up: Tune does so with some that have retries left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from ray.air.execution._internal import actor_manager
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller

LOST = (RayActorError, OutOfMemoryError, NodeDiedError, ObjectLostError)
"""What Ray raises when a worker, its machine or what it had reported is gone."""

N_FAILURES = "n_failures"
"""Key of a trial's config: how often it had lost its worker before it was given to Tune, again."""

_MAX_REASON = 300


@contextmanager
def worker_losses_restart_trials() -> Iterator[None]:
    """Tune inside takes every way of losing a worker for what it is, and starts the trial again.

    By itself it knows only the first of `LOST`; any other would end the whole search, even that of a worker that Ray
    ended for want of memory. There is no setting for it, so two names in Tune's own modules are replaced meanwhile.
    """
    modules: tuple[Any, ...] = (actor_manager, tune_controller)
    before = [module.RayActorError for module in modules]
    for module in modules:
        module.RayActorError = LOST
    try:
        yield
    finally:
        for module, known in zip(modules, before, strict=True):
            module.RayActorError = known


class RetryCallback(tune.Callback):
    """Tells the searcher of trials that Tune has given up, and whether they run again; a callback of Tune.

    Tune restarts a trial whose worker dies, as often as it may. But a worker is kept from trial to trial, and that one
    died in between is only noticed when it is made ready for the next trial. Tune hears of that twice, as the death of
    the worker and as the failure of what it was asked to do: the first time the trial is queued again, and the second
    time, as it does not run yet, given up, whatever retries it has left.

    Args:
        on_trial_lost: called with the trial's id in Tune, the failures so far, the last reason, whether it runs again.
    """

    def __init__(self, on_trial_lost: Callable[[str, int, str, bool], None]) -> None:
        self._given_up = on_trial_lost
        self._queued: dict[str, int] = {}  # trials that are queued again, and how often they had failed then

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called when a worker is ready for the trial."""
        self._queued.pop(trial.trial_id, None)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called when a worker died and the trial is queued again."""
        self._queued[trial.trial_id] = trial.run_metadata.num_failures

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called when Tune gives a trial up, after the searcher heard that it is over."""
        self._given_up(trial.trial_id, self._n_failures(trial), reason(trial), self.again(trial))

    def again(self, trial: Any) -> bool:
        """Whether a trial that Tune has given up has retries left."""
        return self._n_failures(trial) <= int(trial.max_failures)

    def _n_failures(self, trial: Any) -> int:
        here: int = self._queued.get(trial.trial_id, trial.run_metadata.num_failures)
        return int(trial.config[N_FAILURES]) + here


def reason(trial: Any) -> str:
    """The last failure that Tune noted of a trial, in one line; it says who died and how."""
    file = trial.error_file
    text = Path(file).read_text(encoding="utf-8") if file is not None and Path(file).is_file() else "unknown"
    last = text.rpartition("Failure # ")[2]
    return " ".join(last.split())[:_MAX_REASON]
