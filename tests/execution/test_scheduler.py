"""The scheduler: asks the rule of early stopping after each rung of the exploration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from autocompress.execution.scheduler import ParetoScheduler


class Rule:
    """Stops every trial, and keeps the questions."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def should_continue(self, *question: Any) -> bool:
        self.asked.append(question)
        return False


def answer(rule: Rule, result: dict[str, Any], polish_steps: int = 0) -> str:
    trial = SimpleNamespace(config={"name": "trial_0007", "polish_steps": polish_steps})
    return ParetoScheduler(rule, "f1").on_trial_result(None, trial, result)  # type: ignore[arg-type]


RUNG = {"steps": 20, "latency_ratio": 0.4, "metrics/f1": 0.9, "metrics/loss": 0.1}


def test_the_rule_gets_the_name_steps_metric_and_latency() -> None:
    rule = Rule()
    assert answer(rule, RUNG) == TrialScheduler.STOP
    assert rule.asked == [("trial_0007", 20, 0.9, 0.4)]


@pytest.mark.parametrize(
    ("result", "polish_steps"), [({**RUNG, "done": True}, 0), ({"failed": "traceback"}, 0), (RUNG, 100)]
)
def test_ended_trials_and_polishes_are_not_stopped(result: dict[str, Any], polish_steps: int) -> None:
    rule = Rule()
    assert answer(rule, result, polish_steps) == TrialScheduler.CONTINUE
    assert not rule.asked
