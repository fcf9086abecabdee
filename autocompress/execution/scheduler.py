"""Early stopping on Pareto rank as a scheduler of Ray Tune."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from autocompress.sampling.early_stopping import ParetoEarlyStopping


class ParetoScheduler(FIFOScheduler):
    """See `ray.tune.schedulers.TrialScheduler`; asks the rule after each rung.

    Args:
        stopping: the rule.
        metric: name of the metric that the search optimises.
    """

    def __init__(self, stopping: ParetoEarlyStopping, metric: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stopping = stopping
        self._optimized = metric  # not `_metric`: Tune would look for it in every report

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Continue or stop. A trial that is done, or that reports no rung, ends by itself."""
        if result.get("done") or "latency_ratio" not in result or trial.config["polish_steps"]:
            return TrialScheduler.CONTINUE
        value = result[f"metrics/{self._optimized}"]  # Tune flattens what is nested
        name, latency_ratio = trial.config["name"], result["latency_ratio"]
        continues = self._stopping.should_continue(name, result["steps"], value, latency_ratio)
        return TrialScheduler.CONTINUE if continues else TrialScheduler.STOP
