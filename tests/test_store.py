"""The store of a lease holder: what it writes is what plain Optuna reads, and nobody's word is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator

import optuna
import pytest
import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from storage import Database, HeldStudy, Lease, LeaseLost, Refused, UnknownStudy, studies, tables
from storage.held import Ending
from storage.writes import AddEvent, Claim, EndAttempt


def held_study(
    url: str, name: str = "s", directions: tuple[str, ...] = ("minimize",), timeout: float = 30.0
) -> HeldStudy:
    database = Database(url, timeout=timeout)
    record = studies.create(database, name, directions, seed=1, sampler="tpe", pruner=None)
    record = record or studies.find(database, name)
    assert record is not None
    lease = Lease(database, record.uid, study_name=name, run="test")
    lease.acquire()
    return HeldStudy(lease, record)


@pytest.fixture
def held(url: str) -> Iterator[HeldStudy]:
    study = held_study(url)
    yield study
    study.lease.release()
    study.lease.database.dispose()


def driven(held: HeldStudy) -> optuna.Study:
    return optuna.Study(held.record.name, held.storage, sampler=optuna.samplers.RandomSampler(seed=1))


def plain(held: HeldStudy) -> optuna.Study:
    return optuna.load_study(study_name=held.record.name, storage=held.lease.database.optuna_storage())


def test_plain_optuna_reads_what_the_holder_wrote(held: HeldStudy) -> None:
    study = driven(held)
    trial = study.ask()
    trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    trial.suggest_int("width", 1, 9)
    trial.suggest_categorical("optimizer", ["sgd", None, True])
    trial.report(float("nan"), 0)
    trial.report(float("inf"), 1)
    trial.report(0.5, 2)
    trial.set_user_attr("note", {"a": [1, None]})
    trial.set_constraint("memory", -1.0)
    study.tell(trial, float("inf"))

    read = plain(held).trials[0]
    own = held.image.trials()[0]
    assert read.state is TrialState.COMPLETE
    assert read.params == own.params
    assert read.distributions == own.distributions
    assert read.values == [float("inf")]
    assert str(read.intermediate_values) == "{0: nan, 1: inf, 2: 0.5}"
    assert read.user_attrs == {"note": {"a": [1, None]}}
    assert read.system_attrs == own.system_attrs
    assert read.datetime_start == own.datetime_start
    assert read.datetime_complete == own.datetime_complete


def test_a_reopened_study_is_the_same_as_the_image_before(held: HeldStudy) -> None:
    study = driven(held)
    for _ in range(5):
        trial = study.ask()
        trial.report(trial.suggest_float("x", 0, 1), 3)
        trial.set_user_attr("k", 1)
        study.tell(trial, 1.0)
    study.enqueue_trial({"x": 0.5})
    before = held.image.trials()
    again = HeldStudy(held.lease, held.record)
    assert [vars(trial) for trial in again.image.trials()] == [vars(trial) for trial in before]


def test_numbers_are_dense_while_plain_optuna_adds_trials_too(held: HeldStudy) -> None:
    study, other = driven(held), plain(held)
    for _ in range(4):
        study.tell(study.ask(), 1.0)
        other.tell(other.ask(), 2.0)
    held.refresh()
    assert [trial.number for trial in held.image.trials()] == list(range(8))


def test_the_first_claim_stands_in_the_transaction_that_makes_the_trial(held: HeldStudy) -> None:
    trial = driven(held).ask()
    (attempt,) = held.attempts(trial._trial_id)
    assert (attempt.number, attempt.attempt, attempt.state) == (0, 1, "claimed")


def test_a_waiting_trial_is_popped_once_by_the_holder_or_by_another_program(held: HeldStudy) -> None:
    study, other = driven(held), plain(held)
    other.enqueue_trial({"x": 0.25})
    held.refresh()
    popped = other.ask()
    ours = study.ask()
    assert (popped.number, ours.number) == (0, 1)


def test_an_enqueued_trial_keeps_its_parameters(held: HeldStudy) -> None:
    plain(held).enqueue_trial({"x": 0.25})
    held.refresh()
    assert driven(held).ask().suggest_float("x", 0, 1) == 0.25


@pytest.mark.fault("31: told by another program meanwhile")
def test_the_word_of_another_program_that_told_first_stands(held: HeldStudy) -> None:
    study = driven(held)
    trial = study.ask()
    trial.report(1.0, 0)
    held.flush()
    plain(held).tell(trial.number, 7.0)
    trial.report(2.0, 1)
    with pytest.raises(UpdateFinishedTrialError):
        study.tell(trial, 1.0)
    assert held.finished_elsewhere == {trial._trial_id}
    held.refresh()
    own = held.image.trial(trial._trial_id)
    assert own.values == [7.0]
    assert own.intermediate_values == {0: 1.0}


def test_of_reports_that_come_at_once_those_before_a_refused_one_are_stored(held: HeldStudy) -> None:
    trial = driven(held).ask()
    with pytest.raises(Refused, match="step -1"):
        held.storage.set_trial_intermediate_values(trial._trial_id, {0: 1.0, 1: 2.0, -1: 3.0, 2: 4.0})
    held.flush()
    stored = plain(held).trials[trial.number].intermediate_values
    assert stored == held.image.trial(trial._trial_id).intermediate_values == {0: 1.0, 1: 2.0}


def test_the_end_of_an_attempt_stands_with_the_state_or_not_at_all(held: HeldStudy) -> None:
    study = driven(held)
    trial = study.ask()
    plain(held).tell(trial.number, 7.0)
    end = EndAttempt(
        study_uid=held.uid,
        trial_id=trial._trial_id,
        attempt=1,
        epoch=held.lease.epoch,
        reason="complete",
        charged=False,
    )
    counted: list[bool] = []
    held.endings[trial._trial_id] = Ending(write=end, then=counted.append)
    study.tell(trial, 1.0)
    assert not counted  # it waits for the commit
    held.flush()
    assert counted == [False]
    assert held.finished_elsewhere == {trial._trial_id}
    assert held.attempts(trial._trial_id)[0].state == "claimed"


def test_taking_a_trial_back_supersedes_reports_and_restores_attributes(held: HeldStudy) -> None:
    study = driven(held)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("kept", 1)
    trial.report(0.1, 0)
    trial.report(0.2, 1)
    kept = json.dumps({"user": {"kept": 1}, "system": {}})
    trial.report(0.3, 2)
    trial.set_user_attr("later", 2)
    trial.set_constraint("c", 1.0)
    held.flush(held.supersede(trial._trial_id, 1, 1, kept))

    read = plain(held).trials[0]
    assert read.intermediate_values == {0: 0.1, 1: 0.2}
    assert read.user_attrs == {"kept": 1}
    assert read.system_attrs == {}
    assert set(read.params) == {"x"}
    with held.lease.database.read() as connection:
        moved = connection.execute(sa.select(tables.superseded)).one()
    assert (moved.attempt, moved.step, moved.value, moved.value_type) == (1, 2, 0.3, "FINITE")


def test_a_batch_is_one_transaction(held: HeldStudy) -> None:
    claim = Claim(
        study_uid=held.uid, trial_id=1, number=0, attempt=1, epoch=1, attributes="{}", resumed_step=None
    )
    held.flush(claim)
    event = AddEvent(study_uid=held.uid, epoch=1, kind="half")
    with pytest.raises(sa.exc.IntegrityError):
        held.lease.fence.commit([event, claim])  # the second claim of the same attempt
    with held.lease.database.read() as connection:
        assert connection.execute(sa.select(tables.events)).all() == []


def test_a_holder_that_was_taken_over_changes_nothing(held: HeldStudy) -> None:
    study = driven(held)
    trial = study.ask()
    with held.lease.database.write() as connection:
        connection.execute(tables.leases.update().values(epoch=tables.leases.c.epoch + 1))
    trial.report(1.0, 0)
    with pytest.raises(LeaseLost):
        study.tell(trial, 1.0)
    read = plain(held).trials[0]
    assert (read.state, read.intermediate_values) == (TrialState.RUNNING, {})
    assert held.lease.lost


@pytest.mark.fault("40: deleted under a live driver")
def test_a_study_that_is_deleted_under_its_holder_ends_it_with_one_line(held: HeldStudy) -> None:
    driven(held).ask()
    optuna.delete_study(study_name="s", storage=held.lease.database.optuna_storage())
    with pytest.raises(UnknownStudy, match="deleted or renamed"):
        held.refresh()


@pytest.mark.parametrize(
    ("key", "value"),
    [("a\0b", 1), ("k" * 600, 1), ("k", "a\0b"), ("k", object()), ("k", "x" * (17 * 2**20))],
    ids=["NUL key", "long key", "NUL value", "no JSON", "large"],
)
def test_a_value_that_a_database_refuses_is_refused_before_it_is_queued(
    held: HeldStudy, key: str, value: object
) -> None:
    trial = driven(held).ask()
    with pytest.raises(Refused):
        trial.set_user_attr(key, value)
    held.flush()
    assert plain(held).trials[0].user_attrs == {}


def test_a_step_of_more_than_31_bits_is_refused(held: HeldStudy) -> None:
    trial = driven(held).ask()
    with pytest.raises(Refused, match="2147483648"):
        trial.report(1.0, 2**31)


def test_attributes_of_the_study_reach_and_come_from_other_programs(held: HeldStudy) -> None:
    driven(held).set_user_attr("ours", 1)
    held.flush()
    plain(held).set_user_attr("theirs", 2)
    held.refresh()
    assert driven(held).user_attrs == {"ours": 1, "theirs": 2}


def test_several_objectives_are_stored_in_order(url: str) -> None:
    held = held_study(url, "multi", ("minimize", "maximize"))
    study = driven(held)
    study.tell(study.ask(), [1.0, float("-inf")])
    assert plain(held).trials[0].values == [1.0, float("-inf")]
    held.lease.release()
    held.lease.database.dispose()


def test_a_name_is_taken_once(url: str) -> None:
    database = Database(url)
    assert studies.create(database, "s", ["minimize"], seed=1, sampler=None, pruner=None) is not None
    assert studies.create(database, "s", ["minimize"], seed=2, sampler=None, pruner=None) is None
    database.dispose()


def test_a_study_of_plain_optuna_is_registered_once(url: str) -> None:
    database = Database(url)
    optuna.create_study(study_name="plain", storage=database.optuna_storage(), direction="maximize")
    first = studies.register(database, "plain", seed=5, sampler="tpe", pruner=None)
    again = studies.register(database, "plain", seed=6, sampler="random", pruner=None)
    assert first == again
    assert (first.seed, first.sampler, first.directions) == (5, "tpe", ("maximize",))
    database.dispose()


@pytest.mark.parametrize("name", ["", "a\0b", "n" * 513, "\ud800"])
def test_a_study_name_that_cannot_be_stored_is_refused(sqlite_url: str, name: str) -> None:
    database = Database(sqlite_url)
    with pytest.raises(Refused):
        studies.create(database, name, ["minimize"], seed=1, sampler=None, pruner=None)
    assert studies.names(database) == []


def test_deleting_a_study_takes_every_row_of_it_and_of_no_other(url: str) -> None:
    kept = held_study(url, "kept")
    gone = held_study(url, "gone")
    for held in (kept, gone):
        study = driven(held)
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(1.0, 0)
        trial.set_user_attr("k", 1)
        study.tell(trial, 1.0)
        held.lease.release()
    database = kept.lease.database
    with database.read() as connection:
        before = {name: _count(connection, name) for name in sa.inspect(connection).get_table_names()}
    assert studies.delete(database, "gone")
    assert not studies.delete(database, "gone")
    with database.read() as connection:
        after = {name: _count(connection, name) for name in before}
    assert after["trials"] == after["studies"] == after["tuner_attempts"] == 1
    changed = {name for name in before if before[name] != after[name]}
    assert all(before[name] == 2 * after[name] for name in changed)
    assert plain(kept).trials[0].value == 1.0
    for held in (kept, gone):
        held.lease.database.dispose()


def _count(connection: sa.Connection, name: str) -> int:
    return int(connection.execute(sa.text(f"SELECT count(*) FROM {name}")).scalar_one())
