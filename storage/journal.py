"""A holder's batches, numbered, each applied once: in the database, or in the spill until it is back.

While the database cannot be reached a batch is *parked*: it waits, in memory and in order, for
the database, and what of it can wait is written to the spill first, which then stands for the
commit. The numbers are those of the fence (:mod:`storage.fence`), so that neither a lost reply to
COMMIT nor a replay applies a batch twice.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any

from storage.errors import Refused, StorageError, Unavailable
from storage.fence import Fence
from storage.spill import Spill, is_spillable
from storage.writer import PENDING, Ticket
from storage.writes import EndAttempt, FinishTrial, Write

__all__ = ["Journal", "replay"]

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds for which a commit is tried again before the database counts as away."""


EVERY = 1.0
"""Seconds between two looks whether the database is back."""


class Journal:
    """What stands between the writer and the fence. Its caller lets one thread in at a time.

    Attributes:
        away: the database could not be reached when last tried.
        returned: counts how often it came back.
    """

    def __init__(self, fence: Fence) -> None:
        self.away = False
        self.returned = 0
        self._next_try = 0.0
        self._fence = fence
        self._spill = Spill(fence.study_uid, fence.epoch)
        self._parked: collections.deque[tuple[int, Sequence[Write], Sequence[Ticket]]] = collections.deque()

    def commit(self, writes: Sequence[Write], tickets: Sequence[Ticket]) -> list[Any]:
        """Apply a batch, or park it; the results in order.

        While it is parked, a write that the spill stands for has the result that it will have
        unless another program tells the trial meanwhile; another has
        :data:`~storage.writer.PENDING`.

        Raises:
            Refused, LeaseLost: nothing was written.
            Unavailable: the spill could not be written either.
        """
        if self.away:
            return self._park(writes, tickets)
        try:
            return self._fence.commit(writes, patience=PATIENCE)
        except Unavailable as error:
            if not error.passing:
                raise
            log.warning("%s; nothing new starts, and what runs is kept in %s", error, self._spill.path)
            self.away = True
            return self._park(writes, tickets)

    def retry(self) -> bool:
        """Apply what is parked, if the database is back; True when nothing is parked any more.

        Raises:
            LeaseLost: another driver holds the study; what was parked is superseded by its word.
        """
        if not self.away:
            return True
        try:
            while self._parked:
                seq, writes, tickets = self._parked[0]
                try:
                    results = self._fence.commit(writes, seq=seq, patience=0.0)
                except Refused as error:
                    log.error("%s; %d writes of the time when it was away are left out", error, len(writes))
                    for ticket in tickets:
                        ticket.fail(error)
                else:
                    for ticket in tickets:
                        ticket.settle(results)
                self._parked.popleft()
        except StorageError as error:
            if isinstance(error, Unavailable) and error.passing:
                return False
            for _, _, tickets in self._parked:  # nobody waits for what will not be
                for ticket in tickets:
                    ticket.fail(error)
            self._parked.clear()
            self.away = False
            raise
        self._spill.remove()
        self.away = False
        self.returned += 1
        log.warning("the database is back; everything that was kept meanwhile is in it")
        return True

    def tend(self, alone: contextlib.AbstractContextManager[Any]) -> None:
        """Now and then see whether the database is back, and then apply what is parked.

        Args:
            alone: keeps commits out; not held while the database is tried, which may take long.
        """
        if self.away and time.monotonic() >= self._next_try:
            if self._fence.database.answers():
                with alone:
                    self.retry()
            self._next_try = time.monotonic() + EVERY

    def _park(self, writes: Sequence[Write], tickets: Sequence[Ticket]) -> list[Any]:
        seq = (self._parked[-1][0] if self._parked else self._fence.applied) + 1
        kept = [write for write in writes if is_spillable(write)]
        try:
            if kept:
                self._spill.append(seq, kept)
        except OSError as error:
            raise Unavailable(
                f"the database {self._fence.database} is away, and {self._spill.path} cannot be written "
                f"({error.strerror}): free some space, or name another folder with TUNER_SPILL"
            ) from error
        self._parked.append((seq, writes, tickets))
        return [_expected(write) for write in writes]


def _expected(write: Write) -> Any:
    if not is_spillable(write):
        return PENDING
    return True if isinstance(write, FinishTrial | EndAttempt) else None


def replay(fence: Fence) -> int:
    """Apply what the holder of an epoch left in its spill on this host; the number of batches.

    Args:
        fence: of that epoch.

    Raises:
        LeaseLost: the epoch is over; the spill is superseded.
        Unavailable: the database is away again.
    """
    spill = Spill(fence.study_uid, fence.epoch)
    spill.drop_older()
    batches = spill.read()
    for seq, writes in batches:
        fence.commit(writes, seq=seq, patience=PATIENCE)
    spill.remove()
    if batches:
        log.warning("%d batches that the driver before this one kept are in the database now", len(batches))
    return len(batches)
