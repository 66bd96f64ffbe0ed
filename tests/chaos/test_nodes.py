"""Nodes come and go: a lost one costs only what ran on it, a drained one not even that."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.cluster import StandingRay, standing_ray
from tests.chaos.observer import details, events, groups_left, left_behind, steps_done, steps_run
from tests.chaos.programs import Program, until

pytestmark = pytest.mark.chaos

Train = Callable[..., Program]


@pytest.fixture
def cluster() -> Iterator[StandingRay]:
    """One core on the head."""
    with standing_ray(cpus=1) as found:
        yield found


def place(url: str, number: int) -> str:
    """Ray's id of the node of a trial's newest attempt, once it is known."""
    (trial,) = details(url, number + 1)[number:]
    ranks = trial.attempt_rows[-1].ranks if trial and trial.attempt_rows else []
    return str(ranks[0]["node"]) if ranks else ""


@pytest.mark.fault("4: a node lost")
def test_a_lost_node_costs_its_trial_a_retry_elsewhere_and_a_new_one_is_used_at_once(
    cluster: StandingRay, train: Train, tmp_path: Path, sqlite_url: str
) -> None:
    raylet = cluster.add_node()
    driver = train("one", "--address", cluster.address, n=10)
    until(lambda: min(steps_done(tmp_path, 0), steps_done(tmp_path, 1)) >= 7 or not driver.alive)
    places = {number: place(sqlite_url, number) for number in (0, 1)}
    assert len(set(places.values())) == 2, "each node was to have one"
    cluster.lose_node(raylet)
    until(lambda: "retry" in events(sqlite_url) or not driver.alive)
    again = cluster.add_node()
    assert driver.wait() == 0, driver.errors()
    trials = details(sqlite_url, 10)
    reasons = {trial.number: [row.reason for row in trial.attempt_rows] for trial in trials}
    (lost,) = [number for number, found in reasons.items() if found == ["node_lost", "complete"]]
    assert lost in (0, 1)
    assert all(found == ["complete"] for number, found in reasons.items() if number != lost)
    assert trials[lost].attempt_rows[1].resumed_step >= 4
    repeated = sum(count - 1 for (number, _), count in steps_run(tmp_path).items() if number == lost)
    assert repeated <= 5, "more than a checkpoint's interval was run again"
    where = {str(row.ranks[0]["node"]) for trial in trials for row in trial.attempt_rows}
    assert len(where) == 3, "the new node was not used"
    assert again
    assert groups_left(cluster.address, sqlite_url) == []


@pytest.mark.fault("34: a node drained with a deadline")
def test_a_node_that_is_drained_is_left_with_a_checkpoint_and_uncharged(
    cluster: StandingRay, train: Train, tmp_path: Path, sqlite_url: str
) -> None:
    cluster.add_node()
    driver = train("one", "--address", cluster.address, "--failures", "0", n=2, steps=80)
    until(lambda: min(steps_done(tmp_path, 0), steps_done(tmp_path, 1)) >= 3 or not driver.alive)
    head = cluster.head_node()
    drained = 0 if place(sqlite_url, 0) != head else 1
    cluster.drain_node(place(sqlite_url, drained), seconds=30)
    until(lambda: "retry" in events(sqlite_url) or not driver.alive, 20)
    assert driver.wait() == 0, driver.errors()
    trials = details(sqlite_url, 2)
    assert [row.reason for row in trials[drained].attempt_rows] == ["preempted", "complete"]
    assert [row.reason for row in trials[1 - drained].attempt_rows] == ["complete"]
    assert trials[drained].attempt_rows[1].ranks[0]["node"] == head
    assert set(steps_run(tmp_path).values()) == {1}, "it did not save before it left"


@pytest.mark.fault("32: the head of a cluster killed")
def test_a_cluster_whose_head_is_killed_is_left_and_another_one_resumes(
    cluster: StandingRay, train: Train, tmp_path: Path, sqlite_url: str
) -> None:
    first = train("one", "--address", cluster.address, n=2)
    until(lambda: steps_done(tmp_path, 0) >= 7 or not first.alive)
    cluster.lose_head()
    began = time.monotonic()
    until(lambda: not first.alive or time.monotonic() - began > 20)
    if first.alive:  # Ray itself takes a minute to give up
        first.signal(signal.SIGKILL)
    first.wait()
    second = train("two", n=2)
    assert second.wait() == 0, second.errors()
    trials = details(sqlite_url, 2)
    assert [trial.state for trial in trials] == ["COMPLETE", "COMPLETE"]
    assert trials[0].attempt_rows[-1].resumed_step >= 4
    assert max(steps_run(tmp_path).values()) <= 2
    until(lambda: not left_behind(sqlite_url), 75)  # the shell there ends itself after a minute
