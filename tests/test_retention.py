"""Which checkpoints a trial starts from, which can go, and what is said of ranks that save apart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from storage.held import CheckpointRecord
from tuner import retention
from tuner.assignment import Resume


def part(attempt: int, step: int, rank: int = 0, world_size: int = 1) -> CheckpointRecord:
    return CheckpointRecord(
        attempt=attempt,
        step=step,
        rank=rank,
        world_size=world_size,
        path=f"a{attempt}/step-{step}/rank-{rank}",
        digest="",
        size=0,
        attributes="{}" if rank == 0 else None,
    )


def newest_first(*records: CheckpointRecord) -> list[CheckpointRecord]:
    """As the store gives them."""
    return sorted(records, key=lambda one: (-one.attempt, -one.step, one.rank))


def pair(attempt: int, step: int) -> list[CheckpointRecord]:
    return [part(attempt, step, rank, 2) for rank in (0, 1)]


def test_the_newest_whole_and_undamaged_one_is_where_a_retry_starts() -> None:
    records = newest_first(*pair(1, 1), *pair(1, 2), *pair(1, 3), part(1, 4, 0, 2))
    found, damaged = retention.newest_valid(records, lambda shard: shard.path != "a1/step-3/rank-1")
    assert found is not None
    assert found.step == 2
    assert [one.step for one in damaged] == [3]


def test_what_is_older_than_the_kept_ones_can_go_and_newer_parts_stay() -> None:
    records = newest_first(*pair(1, 1), part(1, 2, 0, 2), *pair(1, 3), *pair(1, 4), part(1, 5, 1, 2))
    assert retention.expendable(records, 2) == [(1, 1), (1, 2)]
    assert retention.expendable(records, 3) == []
    assert retention.expendable(records, 4) == []


def test_when_the_trial_is_over_parts_can_go_too() -> None:
    records = newest_first(*pair(1, 3), *pair(1, 4), part(1, 5, 1, 2))
    assert retention.expendable(records, 1, over=True) == [(1, 3), (1, 5)]
    assert retention.expendable([part(1, 5, 0, 2)], 1, over=True) == [(1, 5)]


def test_what_the_attempt_started_from_stays_while_it_runs() -> None:
    records = newest_first(*(part(attempt, step) for attempt, step in [(1, 1), (1, 2), (2, 3), (2, 4)]))
    used = Resume(attempt=1, step=2, shards=())
    assert retention.expendable(records, 2, used=used) == [(1, 1)]
    assert retention.expendable(records, 1, over=True) == [(1, 1), (1, 2), (2, 3)]


def test_parts_without_their_match_do_not_fill_the_disk() -> None:
    records = newest_first(*(part(1, step, 0, 2) for step in range(100)))
    assert len(records) - len(retention.expendable(records, 2)) == 16


@given(
    st.sets(st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(0, 1))),
    st.integers(1, 3),
    st.booleans(),
)
def test_the_newest_whole_ones_are_never_expendable(
    parts: set[tuple[int, int, int]], keep: int, over: bool
) -> None:
    records = newest_first(*(part(attempt, step, rank, 2) for attempt, step, rank in parts))
    gone = set(retention.expendable(records, keep, over=over))
    complete = [(one.attempt, one.step) for one in retention.whole(records)]
    assert not gone & set(complete[:keep])
    assert set(complete[keep:]) <= gone
    left = [one for one in records if (one.attempt, one.step) not in gone]
    assert retention.expendable(left, keep, over=over) == []


def test_ranks_that_do_not_save_the_same_steps_are_named() -> None:
    assert retention.unmatched(newest_first(*(part(1, step, 0, 3) for step in (0, 1))), 1) == ""
    alone = newest_first(*(part(1, step, 0, 3) for step in (0, 1, 2)))
    assert retention.unmatched(alone, 1) == "ranks 1, 2 saved none of the last 3 steps"
    apart = newest_first(*(part(1, step, step % 2, 2) for step in range(4)))
    assert retention.unmatched(apart, 1) == "its ranks saved 4 different steps"
    assert retention.unmatched(newest_first(*alone, *(part(1, 3, rank, 3) for rank in range(3))), 1) == ""
    assert retention.unmatched(alone, 2) == ""


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.sampled_from(["minimize", "maximize"]))
def test_the_best_trials_keep_theirs_whatever_the_order(values: list[float], direction: str) -> None:
    best = retention.Best(direction, 3)
    dropped = {one for number, value in enumerate(values) if (one := best.offer(number, value)) is not None}
    kept = [values[number] for number in range(len(values)) if number not in dropped]
    assert sorted(kept) == sorted(sorted(values, reverse=direction == "maximize")[:3])
