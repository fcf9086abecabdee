"""The learning rate over a fine-tune, whose length may change while it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_WARM_UP_SHARE = 0.1


class CosineSchedule:
    """A linear rise over the first tenth of the steps, then a half cosine to zero.

    When the length changes, the share of the schedule that is behind stays behind, and the rest is spread over the
    steps that are left: the rate never jumps, and it still ends at zero.

    Args:
        n_steps: at least 1.
    """

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps
        self._from_step, self._from_share = 0, 0.0

    def end_at(self, n_steps: int, step: int) -> None:
        """From `step` on, the fine-tune ends after `n_steps` steps in all."""
        self._from_share, self._from_step = self.share(step), step
        self.n_steps = n_steps

    def factor(self, step: int) -> float:
        """Share of the peak learning rate, between 0 and 1."""
        share, warm_up = self.share(step), max(_WARM_UP_SHARE, 1 / self.n_steps)
        if share < warm_up:
            return min(1.0, (share + 1 / self.n_steps) / (warm_up + 1 / self.n_steps))
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warm_up) / max(1 / self.n_steps, 1 - warm_up))))

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        return {"n_steps": self.n_steps, "from_step": self._from_step, "from_share": self._from_share}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The schedule as it was when `state_dict` was called."""
        self.n_steps = int(state["n_steps"])
        self._from_step, self._from_share = int(state["from_step"]), float(state["from_share"])

    def share(self, step: int) -> float:
        """How much of the schedule is behind at a step, between 0 and 1."""
        left = max(1, self.n_steps - self._from_step)
        return min(1.0, self._from_share + (1 - self._from_share) * (step - self._from_step) / left)
