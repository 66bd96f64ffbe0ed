"""Group commit: what several threads write goes, in order, into one transaction at a time.

There is no hand-over to a thread for what is awaited: whoever calls :meth:`Writer.flush` commits
all that has gathered, its own and the others', while those who come meanwhile gather the next
transaction. What nobody awaits is committed by a thread, within :data:`PACE` seconds.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from storage.errors import Refused, StorageError, Unavailable
from storage.latency import Latencies
from storage.writes import Write

__all__ = ["PACE", "PENDING", "Ticket", "Writer"]

log = logging.getLogger(__name__)

PACE = 0.25
"""Seconds until what nobody awaits is committed."""

GATHERED, TRIAL = 4_000, 20
"""Rows that may gather before the one who adds more has to commit, and rows of an added trial: a
bound of memory, and of the time for which one transaction keeps other programs out."""

GAP, BUSY = 0.002, 0.030
"""Seconds: under load the writer leaves the database alone for GAP once it has held it for BUSY.
SQLite's waiters poll: without a gap another program's ``enqueue_trial`` waited up to 19 s."""

PENDING = object()
"""The result of a write that the database has not taken yet, and that nothing stands in for."""


class Ticket:
    """Writes of one caller that stand or fall together; ``then`` gets their results.

    Attributes:
        event: set when ``done``, for one who waits.
    """

    def __init__(self, start: int, count: int, then: Callable[[Sequence[Any]], None] | None = None) -> None:
        self.start = start
        self.count = count
        self.then = then
        self.done = False
        self.event: threading.Event | None = None
        self.results: Sequence[Any] = ()
        self.error: StorageError | None = None

    def settle(self, results: Sequence[Any]) -> None:
        """Give the results of the whole batch, of which this ticket's may still be pending."""
        if self.done:
            return
        mine = results[self.start : self.start + self.count]
        if any(result is PENDING for result in mine):
            return
        self.results = mine
        if self.then is not None:
            self.then(mine)
        self._end()

    def fail(self, error: StorageError) -> None:
        """The writes were not, and will not be, carried out; nothing where they were."""
        if not self.done:
            self.error = error
            self._end()

    def _end(self) -> None:
        self.done = True
        if self.event is not None:
            self.event.set()


class Writer:
    """The queue of one lease holder's writes, and the thread that commits what nobody awaits.

    Args:
        commit: applies a batch as one transaction and returns its results; gets the tickets too,
            and settles those whose results were :data:`PENDING` later. Raises
            :class:`~storage.errors.Refused` for a fault of the data, when nothing was written.
        tend: called by the thread a few times a second with the lock that keeps commits out.
        refused: called for a write that nobody awaited and that the database refused.
        gap: leave gaps for programs that poll for the lock.

    Attributes:
        latencies: of the commits.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Write], Sequence[Ticket]], list[Any]],
        *,
        tend: Callable[[contextlib.AbstractContextManager[Any]], None],
        refused: Callable[[Write, Refused], None],
        gap: bool,
    ) -> None:
        self._commit = commit
        self._tend = tend
        self._refused = refused
        self._gap = gap
        self.latencies = Latencies()
        self._queue: list[Write] = []
        self._tickets: list[Ticket] = []
        self._gathering = threading.Lock()
        self._committing = threading.RLock()
        self._failure: StorageError | None = None
        self._ended = self._busy = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tuner-writer", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Rows that wait to be committed."""
        return len(self._queue)

    def add(self, writes: Sequence[Write], then: Callable[[Sequence[Any]], None] | None = None) -> None:
        """Add writes that are durable within :data:`PACE`, in order."""
        with self._gathering:
            self._check()
            if then is not None:
                self._tickets.append(Ticket(len(self._queue), len(writes), then))
            self._queue.extend(writes)
            full = len(self._queue) + TRIAL * len(self._tickets) >= GATHERED
        if full:
            self.flush()

    def flush(self, writes: Sequence[Write] = (), patience: float = 0.0) -> Sequence[Any]:
        """Add writes and commit all that has gathered; the results of ``writes``.

        Args:
            patience: seconds to wait for a database that is away, where the writes need it.

        Raises:
            Refused: the database cannot hold a value of ``writes``; none of them was written.
            Unavailable: it was away for longer than ``patience``; the writes may still be
                carried out when it is back.
            LeaseLost: another driver holds the study.
        """
        with self._gathering:
            self._check()
            ticket = Ticket(len(self._queue), len(writes))
            ticket.event = threading.Event()
            self._tickets.append(ticket)
            self._queue.extend(writes)
        with self._committing:
            if not ticket.done:
                self._commit_gathered()
        if not ticket.event.wait(patience):
            raise Unavailable("the database is away, and nothing new can start; what runs goes on")
        if ticket.error is not None:
            raise ticket.error
        return ticket.results

    def close(self) -> None:
        """Commit what has gathered, and end the thread. Safe to call twice."""
        self._closing.set()
        self._thread.join(timeout=60)
        if self._queue or self._tickets:
            self.flush()

    def _run(self) -> None:
        while not self._closing.wait(PACE):
            try:
                self._tend(self._committing)
                with self._committing:
                    if self._queue:
                        self._commit_gathered()
            except StorageError as error:  # those who wait for it have it; the next flush raises it again
                log.debug("%s", error)
            except Exception as error:
                self._fail(error)

    def _commit_gathered(self) -> None:
        with self._gathering:
            writes, self._queue = self._queue, []
            tickets, self._tickets = self._tickets, []
        if writes and self._gap:
            self._breathe()
        began = time.perf_counter()
        try:
            self._apply(writes, tickets)
            if writes:
                self.latencies.add(time.perf_counter() - began)
        except StorageError as error:
            for ticket in tickets:
                ticket.fail(error)
            raise
        except Exception as error:
            failure = self._fail(error)
            for ticket in tickets:
                ticket.fail(failure)
            raise failure from error
        finally:
            self._ended = time.perf_counter()
            self._busy += self._ended - began

    def _fail(self, error: Exception) -> StorageError:
        """A fault of ours: what it left is unknown, so nothing may be acknowledged after it."""
        log.error("the writer failed and takes nothing more", exc_info=error)
        self._failure = StorageError(f"the writer failed ({type(error).__name__}: {error}); start again")
        return self._failure

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _breathe(self) -> None:
        free = time.perf_counter() - self._ended
        if free >= GAP:
            self._busy = 0.0
        elif self._busy >= BUSY:
            time.sleep(GAP - free)
            self._busy = 0.0

    def _apply(self, writes: Sequence[Write], tickets: Sequence[Ticket]) -> None:
        try:
            results = self._commit(writes, tickets) if writes else []
        except Refused as error:
            self._salvage(_units(writes, tickets), error)
            results = [None] * len(writes)  # for those who only wait for what was before them
        for ticket in tickets:
            ticket.settle(results)

    def _salvage(self, units: Sequence[_Unit], error: Refused) -> None:
        """A batch was refused for its data: halve it until only the culprit fails."""
        if len(units) == 1:
            writes, ticket = units[0]
            if ticket is not None:
                ticket.fail(error)
            if ticket is None or ticket.event is None:  # nobody waits for it
                self._refused(writes[0], error)
            return
        middle = len(units) // 2
        for half in (units[:middle], units[middle:]):
            batch: list[Write] = []
            tickets = []
            for writes, ticket in half:
                if ticket is not None:
                    ticket.start = len(batch)
                    tickets.append(ticket)
                batch += writes
            try:
                results = self._commit(batch, tickets)
            except Refused as culprit:
                self._salvage(half, culprit)
            else:
                for ticket in tickets:
                    ticket.settle(results)


_Unit = tuple[Sequence[Write], Ticket | None]
"""Writes that stand or fall together."""


def _units(writes: Sequence[Write], tickets: Sequence[Ticket]) -> list[_Unit]:
    """What a batch consists of: the writes of each ticket that has any, and each other write."""
    units: list[_Unit] = []
    at = 0
    for ticket in [*tickets, Ticket(len(writes), 0)]:
        units += [([write], None) for write in writes[at : ticket.start]]
        at = ticket.start + ticket.count
        if ticket.count:
            units.append((writes[ticket.start : at], ticket))
    return units
