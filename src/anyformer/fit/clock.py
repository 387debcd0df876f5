"""The minutes of a run, those before an interruption included."""

import time
from collections.abc import Callable

Notify = Callable[[str, float], None]


class Clock:
    """Says how much of a run's time is used, and tells its owner what is going on.

    Args:
        used: seconds used by earlier calls.
        minutes: of the run in all.
        notify: told what is being done and which share of the time is used.
    """

    def __init__(self, used: float, minutes: float, notify: Notify) -> None:
        self.total, self.notify = 60.0 * minutes, notify
        self.started = time.monotonic() - used

    @property
    def seconds(self) -> float:
        """Seconds used so far."""
        return time.monotonic() - self.started

    def say(self, what: str) -> None:
        """Tell the caller what is going on."""
        self.notify(what, min(1.0, self.seconds / self.total))
