"""Ranks agree by the ordinal of the call, whoever asks, and nobody waits for ever."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.agreement import DONE, Agreement, PeerLost, open_store
from tuner.channel import Place


class MemoryStore:
    """The four calls of TCPStore that an agreement needs, with the same meaning."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def get(self, key: str) -> bytes:
        return self.values[key]

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        assert expected == ""
        with self._lock:
            return self.values.setdefault(key, desired.encode())


class Clock:
    """Time that passes only where a rank naps; ``meanwhile`` runs at each nap."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.now = 0.0
        self.meanwhile = meanwhile

    def __call__(self) -> float:
        return self.now

    def nap(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        self.meanwhile()


def rank_one(store: MemoryStore, clock: Clock) -> Agreement:
    return Agreement(store, "prune", 1, patience=30, clock=clock, pause=clock.nap)


def never(ordinal: int) -> bool:
    raise AssertionError("only rank 0 decides")


def bound_place(ranks: int) -> Iterator[Place]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port, descriptor = listener.getsockname()[1], listener.detach()
    for rank in range(ranks):
        fd = descriptor if rank == 0 else -1
        yield Place(rank=rank, world_size=ranks, host="127.0.0.1", port=port, listen_fd=fd)


@pytest.fixture
def stores() -> list:
    """Real TCPStores of one trial, rank 0's first."""
    return [open_store(place) for place in bound_place(3)]


def test_one_rank_needs_no_store() -> None:
    alone = Agreement(None, "prune", 0)
    assert [alone.verdict(lambda n: n == 2) for _ in range(3)] == [False, True, False]


def test_another_rank_gets_rank_0s_verdict_of_the_same_ordinal() -> None:
    store, clock = MemoryStore(), Clock()
    first = Agreement(store, "prune", 0)
    decided = [first.verdict(lambda n: n % 2 == 0) for _ in range(4)]
    other = rank_one(store, clock)
    assert [other.verdict(never) for _ in range(4)] == decided == [False, True, False, True]
    assert clock.now == 0


def test_rank_0_never_naps() -> None:
    def forbidden(seconds: float) -> None:
        raise AssertionError("rank 0 waited")

    first = Agreement(MemoryStore(), "prune", 0, pause=forbidden)
    assert [first.verdict(lambda n: True) for _ in range(100)] == [True] * 100


def test_topics_do_not_mix() -> None:
    store = MemoryStore()
    Agreement(store, "stop", 0).verdict(lambda n: True)
    assert Agreement(store, "prune", 0).verdict(lambda n: False) is False


def test_a_rank_waits_for_a_verdict_that_comes_in_time() -> None:
    store = MemoryStore()
    first = Agreement(store, "prune", 0)
    clock = Clock()

    def later() -> None:
        if clock.now > 20 and not store.values:
            first.verdict(lambda n: True)

    clock.meanwhile = later
    assert rank_one(store, clock).verdict(never) is True
    assert 20 < clock.now < 30


def test_a_rank_that_asks_alone_waits_once_only() -> None:
    clock = Clock()
    other = rank_one(MemoryStore(), clock)
    assert [other.verdict(never) for _ in range(50)] == [False] * 50
    assert clock.now == pytest.approx(30, abs=0.1)


def test_a_rank_that_asks_more_often_than_rank_0_waits_once_only() -> None:
    store, clock = MemoryStore(), Clock()
    first, other = Agreement(store, "prune", 0), rank_one(store, clock)
    answers, decided = [], []
    for epoch in range(1, 51):
        answers.append(other.verdict(never))
        if epoch % 10 == 0:
            decided.append(first.verdict(lambda n: True))
    assert clock.now == pytest.approx(30, abs=0.1)
    assert decided == answers[:5]


def test_what_the_impatient_rank_decided_holds_for_rank_0_too() -> None:
    store, clock = MemoryStore(), Clock()
    assert rank_one(store, clock).verdict(never) is False
    assert Agreement(store, "prune", 0).verdict(lambda n: True) is False


def test_a_slow_rank_0_is_given_more_time_and_decides_in_the_end() -> None:
    """Rank 0 validates alone for 100 s before each question."""
    store, clock = MemoryStore(), Clock()
    first, other = Agreement(store, "prune", 0), rank_one(store, clock)
    answers: list[bool] = []
    for epoch in range(1, 6):
        start, asked = clock.now, [False]

        def validate(start: float = start, asked: list[bool] = asked) -> None:
            if clock.now - start >= 100 and not asked[0]:
                asked[0] = True
                first.verdict(lambda n: n == 5)

        clock.meanwhile = validate
        answers.append(other.verdict(never))
        clock.now = max(clock.now, start + 100)
        validate()
        assert asked[0], epoch
    assert answers == [False, False, False, False, True]


def test_a_rank_that_waits_for_one_that_ends_meanwhile_waits_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemoryStore()
    clock = Clock(lambda: store.set(f"{DONE}/0", "1") if clock.now > 3 else None)
    other = rank_one(store, clock)
    assert [other.verdict(never) for _ in range(50)] == [False] * 50
    assert 3 < clock.now < 3.1
    assert caplog.text == ""  # its patience was not too short


def test_the_last_verdict_before_the_end_counts() -> None:
    """Rank 0 decides and ends between two looks of the other rank."""
    store = MemoryStore()

    class Late(MemoryStore):
        def check(self, keys: list[str]) -> bool:
            found = store.check(keys)
            if not store.values:
                Agreement(store, "prune", 0).verdict(lambda n: True)
                store.set(f"{DONE}/0", "1")
            return found

    late = Late()
    late.values = store.values
    assert rank_one(late, Clock()).verdict(never) is True


def test_an_error_of_the_driver_is_not_taken_for_a_lost_peer() -> None:
    def refuse(ordinal: int) -> bool:
        raise RuntimeError("the driver says no")

    with pytest.raises(RuntimeError, match="the driver says no") as caught:
        Agreement(MemoryStore(), "prune", 0).verdict(refuse)
    assert not isinstance(caught.value, PeerLost)


@settings(max_examples=60, deadline=None)
@given(pattern=st.lists(st.integers(0, 2), max_size=40), verdicts=st.lists(st.booleans(), min_size=40))
def test_any_pattern_of_calls_ends_and_agrees(pattern: list[int], verdicts: list[bool]) -> None:
    """``pattern`` is the order in which ranks ask; nothing else happens while one waits."""
    store, clock = MemoryStore(), Clock()
    ranks = [Agreement(store, "prune", rank, patience=30, clock=clock, pause=clock.nap) for rank in range(3)]
    seen: dict[int, list[bool]] = {0: [], 1: [], 2: []}
    for rank in pattern:
        seen[rank].append(ranks[rank].verdict(lambda n: verdicts[n - 1]))
    for ordinal in zip(*(answers for answers in seen.values() if answers), strict=False):
        assert len(set(ordinal)) == 1


def test_a_missing_key_of_a_real_store_is_set_once(stores: list) -> None:
    assert stores[1].compare_set("key", "", "1") == b"1"
    assert stores[0].compare_set("key", "", "0") == b"1"
    assert stores[2].get("key") == b"1"


@pytest.mark.parametrize("seed", range(4))
def test_ranks_that_race_on_a_real_store_agree(stores: list, seed: int) -> None:
    plan = random.Random(seed)
    counts = [plan.choice([0, 5, 30]) for _ in range(3)]
    delays = [[plan.random() * 0.004 for _ in range(count)] for count in counts]
    seen: list[list[bool]] = [[], [], []]
    idle = threading.Event()

    def ask(rank: int) -> None:
        agreement = Agreement(stores[rank], "prune", rank, patience=0.02)
        for delay in delays[rank]:
            idle.wait(delay)
            seen[rank].append(agreement.verdict(lambda n: n % 3 == 0))

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [len(answers) for answers in seen] == counts
    for ordinal in range(30):
        assert len({answers[ordinal] for answers in seen if len(answers) > ordinal}) <= 1


def test_a_store_that_is_gone_is_a_lost_peer(capfd: pytest.CaptureFixture[str]) -> None:
    served, mine = (open_store(place) for place in bound_place(2))
    other = Agreement(mine, "prune", 1)
    del served
    with pytest.raises(PeerLost, match="rank 1 lost rank 0"):
        other.verdict(never)
