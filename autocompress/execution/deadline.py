"""How many training steps fit before a deadline, judged again and again while training runs."""

from __future__ import annotations

import time
from collections.abc import Callable

_RESERVE_SHARE = 0.04  # of the time: saving, sending, and what the last steps take longer
_RESERVE_SECONDS = 2.0
_MUCH = 0.05  # relative change of the steps that are left from which on the plan is changed
_MOST_GROWTH = 1.5  # of the steps that are left, each time


class Deadline:
    """A time by which a fine-tune has to have ended and been judged.

    Args:
        seconds: from now on.
        now: seconds of a clock that never runs backwards.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + seconds - min(_RESERVE_SHARE * seconds + _RESERVE_SECONDS, seconds / 2)

    def n_steps(self, step: int, planned: int, step_seconds: float, to_come: float) -> int:
        """How many steps there should be in all.

        Args:
            step: steps that are done.
            planned: steps in all, as planned so far; at least `step`.
            step_seconds: of one step.
            to_come: seconds that judging will still take.

        Returns: `planned` where that is about right; never less than `step`.
        """
        left = self._end - self._now() - to_come
        fits, wanted = max(0, int(left / max(step_seconds, 1e-9))), planned - step
        if abs(fits - wanted) <= _MUCH * max(wanted, 1):
            return planned
        return step + min(fits, int(_MOST_GROWTH * wanted))
