"""How a search's minutes are spent: sensitivities, exploration, polish, and the end, in this order."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

SENSITIVITY_SHARE = 0.1
END_SHARE = 0.1
MOST_END_SHARE = 0.35


@dataclass
class RunClock:
    """Seconds of one start of a search; without `minutes` nothing ends by the clock.

    Attributes:
        minutes: of this start in all, or None.
        polish_share: of the trials' time that training front points further gets.
        now: seconds of a clock that never runs backwards.
        end_seconds: what measuring the front's files is expected to take; between `END_SHARE` and `MOST_END_SHARE`
            of the minutes are kept for it.
    """

    minutes: float | None
    polish_share: float
    now: Callable[[], float] = time.monotonic
    end_seconds: float = 0.0
    began: float = field(init=False)
    trials_began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.trials_began = self.now()

    def begin_trials(self) -> None:
        """Called when the first trial may begin: exploration and polish share what is left then."""
        self.trials_began = self.now()

    @property
    def seconds(self) -> float | None:
        """Of this start in all, or None."""
        return None if self.minutes is None else 60 * self.minutes

    @property
    def elapsed(self) -> float:
        """Seconds since this start."""
        return self.now() - self.began

    @property
    def sensitivity_seconds(self) -> float | None:
        """How long sensitivities may take."""
        return None if self.seconds is None else SENSITIVITY_SHARE * self.seconds

    @property
    def exploration_left(self) -> float | None:
        """Seconds in which new candidates may begin."""
        if self.seconds is None:
            return None
        end = self.began + self._trials_end
        explored = self.trials_began + (1 - self.polish_share) * (end - self.trials_began)
        return max(0.0, min(explored, end) - self.now())

    @property
    def training_left(self) -> float | None:
        """Seconds until trials end, so that the front's files can be measured in time."""
        if self.seconds is None:
            return None
        return max(0.0, self.began + self._trials_end - self.now())

    @property
    def _trials_end(self) -> float:
        """Seconds after the start at which trials end."""
        seconds = self.seconds or 0.0
        return seconds - min(max(END_SHARE * seconds, self.end_seconds), MOST_END_SHARE * seconds)

    @property
    def explores(self) -> bool:
        """Whether new candidates may begin."""
        left = self.exploration_left
        return left is None or left > 0

    @property
    def trains(self) -> bool:
        """Whether the trials' time is not over."""
        left = self.training_left
        return left is None or left > 0
