"""What starts next keeps the budget, and retries come first."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.scheduler import Action, Counts, Done, StartClaimed, StartEnqueued, StartNew, Wait, decide


@pytest.mark.parametrize(
    ("counts", "n_trials", "action"),
    [
        (Counts(retries_due=1, enqueued=1), 10, StartClaimed()),
        (Counts(enqueued=1), 10, StartEnqueued()),
        (Counts(), 10, StartNew()),
        (Counts(finished=10, enqueued=3), 10, Done()),  # those beyond the budget stay enqueued
        (Counts(finished=9, retries_waiting=1), 10, Wait()),  # the last place is taken by a retry to come
        (Counts(finished=9, retries_due=1), 10, StartClaimed()),
        (Counts(finished=12), 10, Done()),  # another program finished some
        (Counts(finished=12, retries_due=1), 10, StartClaimed()),  # a trial of ours must reach its end
        (Counts(finished=10, running=1), 10, Wait()),  # its processes are leaving
        (Counts(running=1, running_unfinished=1), 10, Wait()),  # no slot
        (Counts(running=1, running_unfinished=1, slots=2), 10, StartNew()),
        (Counts(draining=True, running=1, running_unfinished=1, slots=2), 10, Wait()),
        (Counts(draining=True, retries_due=1, enqueued=1), 10, Done()),
        (Counts(paused=True, retries_due=1, enqueued=1), 10, Wait()),
        (Counts(paused=True, finished=10), 10, Done()),  # nothing is left to pause
        (Counts(paused=True, draining=True), 10, Done()),
        (Counts(finished=10**6), None, StartNew()),  # no bound
    ],
)
def test_the_next_action(counts: Counts, n_trials: int | None, action: Action) -> None:
    assert decide(counts, n_trials) == action


@given(
    seed=st.integers(0, 2**32),
    n_trials=st.integers(1, 12),
    slots=st.integers(1, 5),
    enqueued=st.integers(0, 15),
    failing=st.floats(0, 0.6),
)
def test_any_course_of_events_spends_the_budget_exactly(
    seed: int, n_trials: int, slots: int, enqueued: int, failing: float
) -> None:
    events = random.Random(seed)
    counts, taken = Counts(slots=slots, enqueued=enqueued), 0
    for _ in range(2000):
        action = decide(counts, n_trials)
        if action == Done():
            break
        counts, new = _after(counts, action, events, failing)
        taken += new
        unfinished = counts.running_unfinished + counts.retries_due + counts.retries_waiting
        assert counts.finished + unfinished <= n_trials
        assert counts.running <= slots
    assert decide(counts, n_trials) == Done()
    assert counts.finished == n_trials == taken
    assert counts.enqueued == max(0, enqueued - n_trials), "an enqueued trial goes before a new one"


def _after(counts: Counts, action: Action, events: random.Random, failing: float) -> tuple[Counts, int]:
    """The counts after an action was carried out, or after something happened by itself."""

    def plus(**changes: int) -> Counts:
        return dataclasses.replace(
            counts, **{name: getattr(counts, name) + by for name, by in changes.items()}
        )

    if action == StartClaimed():
        return plus(retries_due=-1, running=1, running_unfinished=1), 0
    if action == StartEnqueued():
        return plus(enqueued=-1, running=1, running_unfinished=1), 1
    if action == StartNew():
        return plus(running=1, running_unfinished=1), 1
    leaving = counts.running - counts.running_unfinished
    kinds = ["end"] * counts.running_unfinished + ["due"] * counts.retries_waiting + ["gone"] * leaving
    assert kinds, "it waits although nothing can change"
    kind = events.choice(kinds)
    if kind == "due":
        return plus(retries_waiting=-1, retries_due=1), 0
    if kind == "gone":
        return plus(running=-1), 0
    if events.random() < failing:
        return plus(running_unfinished=-1, retries_waiting=1), 0
    return plus(running_unfinished=-1, finished=1), 0
