"""A cluster that outlives its drivers: a killed driver costs no training, and nothing stays behind."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.chaos.cluster import StandingRay, standing_ray
from tests.chaos.observer import details, events, groups_left, steps_done, steps_run, trainings
from tests.chaos.programs import Program, until

STEPS, PACE = 40, 0.1
WITHOUT_DRIVER = 20.0  # instead of a minute; a driver on a busy machine takes some seconds to come


@pytest.fixture(scope="module")
def cluster() -> Iterator[StandingRay]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TUNER_WITHOUT_DRIVER", str(WITHOUT_DRIVER))
        with standing_ray(cpus=2) as found:
            yield found


Drive = Callable[..., Program]


@pytest.fixture
def drive(cluster: StandingRay, train: Callable[..., Program]) -> Drive:
    """Start a driver on the cluster."""

    def drive(name: str, *arguments: str, pace: float = PACE) -> Program:
        return train(
            *(name, "--address", cluster.address, *arguments),
            n=2,
            steps=STEPS,
            pace=pace,
            TUNER_WITHOUT_DRIVER=str(WITHOUT_DRIVER),
        )

    return drive


@pytest.mark.fault("driver killed, standing cluster: adoption")
def test_a_killed_driver_costs_no_step_and_the_next_one_adopts_what_runs(
    cluster: StandingRay, drive: Drive, tmp_path: Path, sqlite_url: str
) -> None:
    first = drive("one")
    until(lambda: steps_done(tmp_path) >= 8 or not first.alive)
    first.signal(signal.SIGKILL)
    first.wait()
    killed = steps_done(tmp_path)
    until(lambda: steps_done(tmp_path) >= killed + 4)  # the training goes on without a driver
    second = drive("two", "--ranks", "2", "--cpus", "0.5")  # what runs keeps the ranks that it has
    assert second.wait() == 0, second.errors()
    assert set(steps_run(tmp_path).values()) == {1}, "a step was run twice"
    assert len(steps_run(tmp_path)) == 2 * STEPS
    for trial in details(sqlite_url, 2):
        assert (trial.state, [row.reason for row in trial.attempt_rows]) == ("COMPLETE", ["complete"])
        assert [step for step, _ in trial.curve] == list(range(STEPS)), "a report was lost"
        assert {part.world_size for part in trial.checkpoint_parts} == {1}
    assert groups_left(cluster.address, sqlite_url) == []


@pytest.mark.chaos
@pytest.mark.fault("driver killed, trial ends without one")
def test_a_trial_that_ends_without_a_driver_is_told_by_the_next_one(
    cluster: StandingRay, drive: Drive, tmp_path: Path, sqlite_url: str
) -> None:
    first = drive("one")
    until(lambda: steps_done(tmp_path) >= 2 * STEPS - 12 or not first.alive)
    first.signal(signal.SIGKILL)
    first.wait()
    until(lambda: sum(one.name == "end" for one in trainings(tmp_path)) == 2)
    second = drive("two")
    assert second.wait() == 0, second.errors()
    assert set(steps_run(tmp_path).values()) == {1}
    assert [trial.state for trial in details(sqlite_url, 2)] == ["COMPLETE", "COMPLETE"]
    assert groups_left(cluster.address, sqlite_url) == []


@pytest.mark.chaos
@pytest.mark.fault("driver killed, nobody adopts")
def test_groups_that_nobody_adopts_end_themselves_and_their_last_words_count(
    cluster: StandingRay, drive: Drive, tmp_path: Path, sqlite_url: str
) -> None:
    first = drive("one", pace=0.4)
    until(lambda: steps_done(tmp_path) >= 8 or not first.alive)
    first.signal(signal.SIGKILL)
    first.wait()
    words = tmp_path / "checkpoints"
    until(lambda: len(list(words.rglob("last-words-0.jsonl"))) == 2)
    until(lambda: groups_left(cluster.address, sqlite_url) == [])
    done = steps_done(tmp_path)
    second = drive("two")
    assert second.wait() == 0, second.errors()
    assert list(words.rglob("last-words-*")) == []
    assert max(steps_run(tmp_path).values()) <= 2
    repeated = sum(count - 1 for count in steps_run(tmp_path).values())
    assert repeated <= 2 * 5, f"{repeated} of {done} steps were run again"
    for trial in details(sqlite_url, 2):
        assert [row.reason for row in trial.attempt_rows] == ["driver_lost", "complete"]
        assert trial.attempt_rows[1].resumed_step > 5, "what was saved without a driver was lost"
        assert [step for step, _ in trial.curve] == list(range(STEPS))


@pytest.mark.chaos
@pytest.mark.fault("9: zombie driver on a standing cluster")
def test_a_driver_that_wakes_up_too_late_harms_nothing(
    cluster: StandingRay, drive: Drive, tmp_path: Path, sqlite_url: str
) -> None:
    first = drive("one", "--foreign")
    until(lambda: steps_done(tmp_path) >= 4 or not first.alive)
    first.signal(signal.SIGSTOP)
    until(first.is_stopped)
    # less than the seconds after which the groups would end themselves: the lease is taken by its row
    _expire(sqlite_url)
    second = drive("two")
    until(lambda: "adopted" in events(sqlite_url))
    first.signal(signal.SIGCONT)
    assert first.wait() == 3, first.errors()
    assert second.wait() == 0, second.errors()
    assert set(steps_run(tmp_path).values()) == {1}
    assert [trial.state for trial in details(sqlite_url, 2)] == ["COMPLETE", "COMPLETE"]
    assert groups_left(cluster.address, sqlite_url) == []


def _expire(url: str) -> None:
    """As when one lease has passed: nobody owns it."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE tuner_leases SET owner = NULL")
    engine.dispose()
