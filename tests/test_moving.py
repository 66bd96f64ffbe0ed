"""Studies that are copied, forked, deleted and exported: whole or not at all, and still Optuna's."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

import tuner
from storage import (
    Database,
    Held,
    Lease,
    Refused,
    SqlStorage,
    UnknownStudy,
    commands,
    copies,
    enqueue,
    forks,
    reads,
    studies,
    tables,
)

SPACE = {"x": FloatDistribution(0, 1), "k": CategoricalDistribution(["a", None, True])}


def filled(url: str, name: str = "s", count: int = 7) -> optuna.Study:
    """A study of ours with trials of every state, reports, attributes, and a retried attempt."""
    study = tuner.create_study(name, storage=url, sampler="random", seed=3)
    failed = []

    def objective(trial: tuner.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        trial.suggest_categorical("k", ["a", None, True])
        for step in range(4):
            trial.report(float("nan") if step == 2 else x, step)
        trial.set_user_attr("note", {"number": trial.number})
        if trial.number == 1 and not failed:
            failed.append(trial.number)
            raise ConnectionError("once")
        if trial.number == 2:
            raise ValueError("always")
        if trial.number == 3:
            raise optuna.TrialPruned
        return x

    retry = tuner.Retry(retry_on=("ConnectionError",), backoff=0.0)
    study = tuner.optimize(study, objective, n_trials=count, executor="inline", retry=retry)
    study.enqueue_trial({"x": 0.5})
    study.set_user_attr("team", "blue")
    return study


def plain(url: str, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=url)


def content(trial: FrozenTrial) -> tuple[object, ...]:
    return (
        trial.number,
        trial.state,
        trial.values,
        trial.params,
        trial.distributions,
        trial.user_attrs,
        trial.system_attrs,
        str(sorted(trial.intermediate_values.items())),
        trial.datetime_start,
        trial.datetime_complete,
    )


@pytest.fixture
def other(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/other.db"


@pytest.mark.parametrize("way", ["there", "back"])
def test_a_copy_has_everything_and_plain_optuna_goes_on_with_it(url: str, other: str, way: str) -> None:
    one, two = (url, other) if way == "there" else (other, url)
    filled(one)
    filled(two, "before", count=2)  # so that ids differ
    source, target = Database(one), Database(two)
    copied = copies.copy(source, target, "s")
    assert (copied.trials, copied.reports) == (8, 7 * 4)
    there, here = plain(one, "s"), plain(two, "s")
    assert [content(trial) for trial in here.trials] == [content(trial) for trial in there.trials]
    assert here.user_attrs == there.user_attrs
    ours = [reads.trial(database.engine, "s", number) for database in (source, target) for number in range(8)]
    for before, after in zip(ours[:8], ours[8:], strict=True):
        assert before is not None
        assert after is not None
        assert after.attempt_rows == before.attempt_rows
        assert [one.kind for one in after.event_rows] == [one.kind for one in before.event_rows]
        assert str(after.superseded) == str(before.superseded)
    here.enqueue_trial({"x": 0.1})
    here.tell(here.ask(), 1.0)
    assert [trial.number for trial in here.trials] == list(range(9))
    tuner.resume(
        "s", storage=two, objective=lambda trial: 0.0, n_trials=10, executor="inline", sampler="random"
    )
    assert [trial.state.is_finished() for trial in plain(two, "s").trials] == [True] * 10
    source.dispose()
    target.dispose()


def test_a_copy_into_its_own_database_takes_another_name_and_uid(sqlite_url: str) -> None:
    filled(sqlite_url)
    database = Database(sqlite_url)
    assert copies.copy(database, database, "s", "t").trials == 8
    found = [studies.find(database, name) for name in "st"]
    assert len({one.uid for one in found if one}) == 2
    with pytest.raises(Refused, match="already"):
        copies.copy(database, Database(sqlite_url), "s")
    assert studies.names(database) == ["s", "t"]


def test_a_name_that_is_taken_leaves_the_target_as_it_was(url: str, other: str) -> None:
    filled(url)
    plain_study = optuna.create_study(study_name="s", storage=other)
    plain_study.add_trial(create_trial(value=1.0))
    with pytest.raises(Refused, match="already"):
        copies.copy(Database(url), Database(other), "s")
    assert len(plain(other, "s").trials) == 1
    assert copies.copy(Database(url), Database(other), "s", "t").name == "t"


def test_an_unknown_study_is_not_copied(url: str, other: str) -> None:
    with pytest.raises(UnknownStudy, match="nowhere"):
        copies.copy(Database(url), Database(other), "nowhere")


def test_a_study_that_is_driven_is_not_copied(url: str, other: str) -> None:
    storage = SqlStorage(url)
    optuna.create_study(study_name="s", storage=storage)
    with storage.lease("s"), pytest.raises(Held, match="'s'"):
        copies.copy(Database(url), Database(other), "s")
    assert studies.names(Database(other)) == []


def test_a_study_of_plain_optuna_is_copied_too(url: str, other: str) -> None:
    study = optuna.create_study(study_name="p", storage=other, directions=["minimize", "maximize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=3)
    copies.copy(Database(other), Database(url), "p")
    assert [content(one) for one in plain(url, "p").trials] == [content(one) for one in study.trials]
    assert plain(url, "p").directions == study.directions


def test_a_fork_takes_what_fits_and_names_the_rest(url: str) -> None:
    study = filled(url)
    database = Database(url)
    space = {"x": FloatDistribution(0, 0.5), "k": CategoricalDistribution(["a", None, True, "new"])}
    forked = forks.fork(database, "s", "t", space)
    fits = [one.number for one in study.trials if one.state.is_finished() and one.params["x"] <= 0.5]
    assert forked.trials == len(fits)
    assert set(forked.left) == {one.number for one in study.trials} - set(fits)
    assert forked.left[7] == "is WAITING"
    taken = plain(url, "t").trials
    assert [one.params for one in taken] == [study.trials[number].params for number in fits]
    assert {dist.high for one in taken for dist in [one.distributions["x"]]} <= {0.5}  # type: ignore[attr-defined]
    assert plain(url, "t").user_attrs == {"team": "blue"}
    with database.read() as connection:
        kinds = list(connection.execute(sa.select(tables.events.c.kind)).scalars())
    assert kinds.count("forked_from") == 1
    again = tuner.resume(
        "t", storage=url, objective=lambda trial: 0.0, n_trials=len(taken) + 1, executor="inline"
    )
    assert len(again.trials) == len(taken) + 1
    assert len(study.trials) == 8


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"x": FloatDistribution(0, 1)}, "has k, which the space has no more"),
        ({**SPACE, "y": FloatDistribution(0, 1)}, "has no y"),
        ({**SPACE, "x": FloatDistribution(0.9, 1)}, "x=0.5 is outside"),
        ({**SPACE, "k": CategoricalDistribution(["b"])}, "k='a' is outside"),
        ({**SPACE, "x": CategoricalDistribution(["b"])}, "x=0.5 is outside"),
        (lambda trial: trial.suggest_float("z", 0, 1), "z"),
    ],
)
def test_why_a_trial_does_not_fit(space: forks.Space, says: str) -> None:
    trial = create_trial(params={"x": 0.5, "k": "a"}, distributions=dict(SPACE), value=1.0)
    found = forks.fitted(trial, space)
    assert isinstance(found, str)
    assert says in found


def test_a_conditional_space_is_a_function() -> None:
    def space(trial: optuna.Trial) -> None:
        if trial.suggest_categorical("k", ["a", "b"]) == "a":
            trial.suggest_float("x", 0, 1)

    fits = create_trial(params={"k": "b"}, distributions={"k": CategoricalDistribution(["b"])}, value=1.0)
    kept = forks.fitted(fits, space)
    assert isinstance(kept, FrozenTrial)
    assert kept.distributions == {"k": CategoricalDistribution(["a", "b"])}
    assert isinstance(
        forks.fitted(create_trial(params={"k": "a"}, distributions={"k": SPACE["k"]}, value=1.0), space), str
    )


def test_a_fork_onto_a_name_that_is_taken_changes_nothing(sqlite_url: str) -> None:
    filled(sqlite_url, count=2)
    with pytest.raises(Refused, match="already"):
        forks.fork(Database(sqlite_url), "s", "s")
    assert len(plain(sqlite_url, "s").trials) == 3


def test_a_deleted_study_leaves_nothing(url: str) -> None:
    filled(url)
    filled(url, "kept", count=2)
    database = Database(url)
    assert studies.delete(database, "s")
    assert not studies.delete(database, "s")
    with database.read() as connection:
        for table in tables.metadata.tables.values():
            uids = connection.execute(sa.select(table.c.study_uid).distinct()).scalars().all()
            assert len(uids) <= 1, table.name
        trials = tables.optuna_tables["trials"]
        assert len(connection.execute(sa.select(trials.c.trial_id)).all()) == 3
    assert len(plain(url, "kept").trials) == 3
    assert TrialState.WAITING in {one.state for one in plain(url, "kept").trials}


@pytest.mark.parametrize("is_new", [False, True], ids=["gone", "another of its name"])
def test_who_looked_before_a_study_was_deleted_writes_nothing(
    url: str, is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two commands do that run at the same moment."""
    filled(url, count=2)
    database = Database(url)
    seen = studies.find(database, "s")
    assert seen is not None
    assert studies.delete(database, "s")
    if is_new:
        tuner.create_study("s", storage=url)
    before = _rows(database)
    with monkeypatch.context() as patched:
        patched.setattr(studies, "find", lambda *_: seen)
        for act in (
            lambda: copies.copy(database, database, "s", "copied"),
            lambda: forks.fork(database, "s", "forked"),
            lambda: enqueue.again(database, "s", [0], from_checkpoint=True, author="test"),
            lambda: enqueue.with_params(database, "s", {"x": 0.5}, author="test"),
            lambda: commands.send(database, seen.uid, "stop", {"now": False}, "test"),
            Lease(database, seen.uid, study_name="s", run="test").acquire,
        ):
            with pytest.raises(UnknownStudy, match="was deleted by another program"):
                act()
    assert _rows(database) == before
    database.dispose()


def _rows(database: Database) -> dict[str, int]:
    with database.read() as connection:
        names = sa.inspect(connection).get_table_names()
        return {
            name: connection.execute(sa.select(sa.func.count()).select_from(sa.table(name))).scalar_one()
            for name in names
        }
