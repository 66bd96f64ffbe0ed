"""How the ranks of one trial come to the same answer without a collective.

Rank 0 decides the n-th question of a topic and publishes its verdict in the trial's TCPStore;
another rank that asks its own n-th question reads it there. Rank 0 never waits for anyone. A
rank that rank 0 leaves alone decides "no" itself after a while, and at once when rank 0 has come
to its end: who publishes first wins for both, since the store's ``compare_set`` is atomic.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tuner.channel import Place

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["DONE", "Agreement", "PeerLost", "open_store"]

DONE = "done"
"""A rank sets ``done/RANK`` in the store when its objective has ended, and asks nothing more."""

PATIENCE = 30.0
LONGEST_PATIENCE = 300.0
CONNECT = 300.0

_log = logging.getLogger("tuner")


class PeerLost(RuntimeError):
    """The store of the trial's ranks is gone: rank 0's process, which held it, has ended."""


def open_store(place: Place) -> Store:
    """The TCPStore of a trial: rank 0 serves it on its bound socket, the others connect.

    Raises:
        torch.distributed.DistNetworkError: rank 0 is not there within 300 s.
    """
    from torch import distributed

    served: dict[str, Any] = {
        "is_master": place.rank == 0,
        "wait_for_workers": False,
        "timeout": dt.timedelta(seconds=CONNECT),
    }
    if place.rank == 0 and place.listen_fd >= 0:
        served["master_listen_fd"] = place.listen_fd
    return distributed.TCPStore(place.host, place.port, **served)  # type: ignore[attr-defined]


class Agreement:
    """One rank's questions of one topic, answered the same on all ranks by their ordinal.

    Args:
        store: the TCPStore that all ranks share; None with one rank.
        topic: ``"prune"`` or ``"stop"``.
        rank: this process's rank.
        patience: seconds that a rank waits for rank 0's verdict before it decides "no" itself.
            The wait doubles each time that it was too short, up to 300 s: rank 0 may be slow
            because it validates alone. Once rank 0 has fallen further behind than at the last
            such end (it does not ask at all, or more rarely), this rank waits no more.
        clock, pause: doubles of ``time.monotonic`` and ``time.sleep`` for tests.

    Example:
        >>> alone = Agreement(None, "prune", rank=0)
        >>> [alone.verdict(lambda ordinal: ordinal == 2) for _ in range(3)]
        [False, True, False]
    """

    def __init__(
        self,
        store: Store | None,
        topic: str,
        rank: int,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._topic = topic
        self._rank = rank
        self._patience = patience
        self._clock = clock
        self._pause = pause
        self._ordinal = 0
        # By how many questions rank 0 was behind when patience last ended; None: it never did.
        self._gap: int | None = None

    def verdict(self, decide: Callable[[int], bool]) -> bool:
        """The answer of all ranks to this rank's next question.

        Args:
            decide: called on rank 0 only, with the question's ordinal from 1.

        Raises:
            PeerLost: rank 0's process has ended.
        """
        self._ordinal += 1
        if self._store is None:
            return decide(self._ordinal)
        if self._rank:
            with _peer_at_work(self._rank):
                return self._follow(self._store)
        with _peer_at_work(self._rank):
            self._store.set(f"{self._topic}/asked", str(self._ordinal))
        decision = decide(self._ordinal)  # outside: an error of the driver is no lost peer
        with _peer_at_work(self._rank):
            return self._publish(self._store, decision)

    def _follow(self, store: Store) -> bool:
        key = f"{self._topic}/{self._ordinal}"
        hopeless = self._gap is not None and self._ordinal - self._asked(store) > self._gap
        if self._arrives(store, key, 0 if hopeless else self._patience):
            return store.get(key) == b"1"
        if hopeless or _has_ended(store):
            return self._publish(store, False)
        if self._gap is None:
            _log.warning(
                "rank %d asked should_%s for the %d. time and rank 0 did not within %g s: it gets False",
                self._rank,
                self._topic,
                self._ordinal,
                self._patience,
            )
        self._gap = self._ordinal - self._asked(store)
        self._patience = min(2 * self._patience, LONGEST_PATIENCE)
        return self._publish(store, False)

    def _asked(self, store: Store) -> int:
        key = f"{self._topic}/asked"
        return int(store.get(key)) if store.check([key]) else 0

    def _arrives(self, store: Store, key: str, patience: float) -> bool:
        # Polled: TCPStore.wait writes a warning with a C++ stack to stderr when its time is up.
        deadline = self._clock() + patience
        nap = 0.0002
        while not store.check([key]):
            left = deadline - self._clock()
            if left <= 0 or _has_ended(store):
                return False
            self._pause(min(nap, left))
            nap = min(2 * nap, 0.005)
        return True

    def _publish(self, store: Store, verdict: bool) -> bool:
        return store.compare_set(f"{self._topic}/{self._ordinal}", "", "1" if verdict else "0") == b"1"


def _has_ended(store: Store) -> bool:
    """Whether rank 0 asks nothing more."""
    return store.check([f"{DONE}/0"])


@contextlib.contextmanager
def _peer_at_work(rank: int) -> Iterator[None]:
    from torch import distributed

    try:
        yield
    except distributed.DistError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise PeerLost(f"rank {rank} lost rank 0, whose process has ended: {reason}") from error
