"""Time that passes at once: events happen in the order of their moments."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

__all__ = ["VirtualClock"]


class VirtualClock:
    """A clock that its events drive.

    Attributes:
        now: seconds since the beginning.

    Example:
        >>> clock, said = VirtualClock(), []
        >>> clock.at(2.0, lambda: said.append("two"))
        >>> clock.at(1.0, lambda: said.append("one"))
        >>> while clock.step(): pass
        >>> said, clock.now
        (['one', 'two'], 2.0)
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, moment: float, event: Callable[[], None]) -> None:
        """Let something happen then; of one moment the first that was given is the first to happen."""
        heapq.heappush(self._events, (moment, next(self._order), event))

    def step(self, until: float | None = None) -> bool:
        """Let the next event happen; False where there is none, or none up to ``until``, which it is then."""
        if not self._events:
            return False
        moment, _, event = heapq.heappop(self._events)
        if until is not None and moment > until:
            self.now = until
            return False
        self.now = moment
        event()
        return True
