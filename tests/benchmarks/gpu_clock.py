"""The time that a run of gpu.py may take; imported first, so that loading the libraries counts too."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

BEGAN = time.perf_counter()


class TimeUp(BaseException):
    """Raised within a measurement when the budget is spent; no library takes it for an error of its own."""


@dataclass(frozen=True)
class Budget:
    """The moment at which measuring ends."""

    ends: float

    def left(self) -> float:
        """Seconds until then."""
        return self.ends - time.perf_counter()

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Raise :class:`TimeUp` in what runs inside once the time is up."""

        def interrupt(number: int, frame: Any) -> None:
            raise TimeUp

        before = signal.signal(signal.SIGALRM, interrupt)
        # Again every second: an exception that is raised in a destructor is lost.
        signal.setitimer(signal.ITIMER_REAL, max(self.left(), 0.001), 1.0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
