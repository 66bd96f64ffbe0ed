"""SqlStorage: Optuna's own contract suite, with and without a lease, and what goes beyond it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import FrozenTrial, TrialState, create_trial

from storage import Held, Refused, SqlStorage, UnknownStudy


class LeasingStorage(SqlStorage):
    """Takes the lease of every study that it makes, so that the suite runs on the fast path."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.leases = contextlib.ExitStack()
        self.blocks: dict[int, contextlib.ExitStack] = {}

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        study_id = super().create_new_study(directions, study_name)
        block = self.leases.enter_context(contextlib.ExitStack())
        block.enter_context(self.lease(self._shared.get_study_name_from_id(study_id)))
        self.blocks[study_id] = block
        return study_id

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """The real id of an added trial, which the suite looks for."""
        return self.get_trial(super().create_new_trial(study_id, template_trial))._trial_id

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Without ours: the suite expects its own only."""
        found = super().get_study_system_attrs(study_id)
        return {key: value for key, value in found.items() if not key.startswith("tuner:")}

    def get_all_studies(self) -> list[FrozenStudy]:
        studies = super().get_all_studies()
        for study in studies:
            study.system_attrs = self.get_study_system_attrs(study._study_id)
        return studies

    def delete_study(self, study_id: int) -> None:
        if study_id in self.blocks:
            self.blocks.pop(study_id).close()
        super().delete_study(study_id)


class TestSqlStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, url: str) -> Iterator[BaseStorage]:
        storage = SqlStorage(url)
        yield storage
        storage.remove_session()


class TestHeldStorage(StorageTestCase):
    test_pickle_storage = None  # the copy has no lease; see the test below

    @pytest.fixture
    def storage(self, url: str) -> Iterator[BaseStorage]:
        storage = LeasingStorage(url)
        with storage.leases:
            yield storage
        storage.remove_session()


def study_on(storage: BaseStorage, name: str = "s") -> optuna.Study:
    sampler = optuna.samplers.RandomSampler(seed=1)
    return optuna.create_study(study_name=name, storage=storage, sampler=sampler, load_if_exists=True)


@pytest.fixture
def storage(url: str) -> Iterator[SqlStorage]:
    storage = SqlStorage(url)
    yield storage
    storage.remove_session()


WORKER = """
import sys, optuna
from storage import SqlStorage
optuna.logging.set_verbosity(optuna.logging.ERROR)
storage = SqlStorage(sys.argv[1])
study = optuna.load_study(study_name="s", storage=storage, sampler=optuna.samplers.RandomSampler())
sys.stdin.readline()
for at in range(15):
    if at % 3 == 0:
        study.enqueue_trial({"x": 0.5})
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.report(1.0, at)
    study.tell(trial, float(at))
print("done", flush=True)
"""


def test_processes_share_a_study_and_numbers_stay_dense(storage: SqlStorage) -> None:
    study_on(storage)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, storage.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    assert [worker.communicate(timeout=120)[0] for worker in workers] == ["done\n"] * 3
    trials = study_on(storage).trials
    assert [trial.number for trial in trials] == list(range(len(trials)))
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    assert len(done) == 45
    assert len(trials) - len(done) == sum(trial.state is TrialState.WAITING for trial in trials)


def test_threads_share_a_held_study(storage: SqlStorage) -> None:
    study = study_on(storage)
    with storage.lease("s"):
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=60, n_jobs=4)
    trials = optuna.load_study(study_name="s", storage=storage.url).trials
    assert [trial.number for trial in trials] == list(range(60))
    assert all(trial.state is TrialState.COMPLETE for trial in trials)


def test_a_waiting_trial_is_popped_once(storage: SqlStorage) -> None:
    study, other = study_on(storage), study_on(SqlStorage(storage.url))
    study.enqueue_trial({"x": 0.25})
    assert [study.ask().number, other.ask().number] == [0, 1]


@pytest.mark.fault("31: a report or a tell after the end")
def test_a_terminal_state_is_never_overwritten(storage: SqlStorage) -> None:
    study, other = study_on(storage), optuna.load_study(study_name="s", storage=storage.url)
    trial = study.ask()
    other.tell(trial.number, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_intermediate_value(trial._trial_id, 0, 1.0)
    assert study.trials[0].value == 1.0


def test_a_read_sees_what_another_program_just_committed(storage: SqlStorage) -> None:
    study, other = study_on(storage), optuna.load_study(study_name="s", storage=storage.url)
    for number in range(3):
        trial = other.ask()
        assert [one.state for one in study.trials][number:] == [TrialState.RUNNING]
        trial.report(0.5, 1)
        assert study.trials[number].intermediate_values == {1: 0.5}
        other.tell(trial, 2.0)
        assert study.trials[number].value == 2.0
    other.set_user_attr("k", 1)
    assert study.user_attrs == {"k": 1}


def test_a_holder_takes_in_what_other_programs_do(storage: SqlStorage) -> None:
    study, other = study_on(storage), optuna.load_study(study_name="s", storage=storage.url)
    with storage.lease("s") as held:
        foreign = other.ask()
        other.enqueue_trial({"x": 0.125})
        held.refresh()
        trial = study.ask()
        assert (trial.number, trial.suggest_float("x", 0, 1)) == (1, 0.125)
        study.tell(foreign.number, 3.0)
        study.tell(trial, 4.0)
    assert [one.value for one in other.trials] == [3.0, 4.0]


def test_the_number_that_stands_for_an_added_trial_is_taken_everywhere(storage: SqlStorage) -> None:
    study = study_on(storage)
    with storage.lease("s"):
        stands = storage.create_new_trial(study._study_id, create_trial(value=1.0))
        assert stands < 0
        real = storage.get_trial(stands)._trial_id
        assert real > 0
        assert storage.get_trial_id_from_study_id_trial_number(study._study_id, 0) == real
        with pytest.raises(UpdateFinishedTrialError):
            storage.set_trial_user_attr(stands, "k", 1)
    assert len(study.trials) == 1


def test_added_trials_are_written_whole(storage: SqlStorage) -> None:
    given = [
        create_trial(
            params={"x": at / 100, "k": "b"},
            distributions={"x": FloatDistribution(0, 1), "k": CategoricalDistribution(["a", "b"])},
            value=float(at) if at % 3 else None,
            state=TrialState.COMPLETE if at % 3 else TrialState.FAIL,
            intermediate_values={0: 1.0, 7: float("nan"), 3: float("-inf")},
            user_attrs={"at": at},
            system_attrs={"fixed_params": {"x": 1}},
        )
        for at in range(100)
    ]
    study = study_on(storage)
    with storage.lease("s"):
        study.add_trials(given)
    read = optuna.load_study(study_name="s", storage=storage.url).trials
    names = ("state", "params", "distributions", "user_attrs", "system_attrs", "datetime_start")
    for name in names:
        assert [getattr(one, name) for one in read] == [getattr(one, name) for one in given]
    curves = {str(sorted(one.intermediate_values.items())) for one in read}
    assert curves == {"[(0, 1.0), (3, -inf), (7, nan)]"}


@pytest.mark.parametrize("leased", [False, True], ids=["shared", "held"])
@pytest.mark.parametrize(
    ("poison", "says"),
    [
        (lambda s, t: s.set_trial_user_attr(t, "a\0b", 1), "NUL"),
        (lambda s, t: s.set_trial_user_attr(t, "k", {"deep": ["a\0b"]}), "NUL"),
        (lambda s, t: s.set_trial_user_attr(t, "k" * 600, 1), "600"),
        (lambda s, t: s.set_trial_user_attr(t, "k", "x" * 100_000_000), "at most"),
        (lambda s, t: s.set_trial_user_attr(t, "\ud800", 1), "surrogate"),
        (lambda s, t: s.set_trial_user_attr(t, "k", "😀\udfff"), "surrogate"),
        (lambda s, t: s.set_trial_intermediate_value(t, 2**31, 1.0), "2147483648"),
        (lambda s, t: s.set_trial_param(t, "p" * 600, 0.5, FloatDistribution(0, 1)), "600"),
        (lambda s, t: s.set_trial_user_attr(t, "k", object()), "plain data"),
    ],
)
@pytest.mark.fault("39: a value that a database refuses")
def test_poison_is_refused_alike_on_both_databases_and_harms_nobody(
    storage: SqlStorage, leased: bool, poison: Callable[[SqlStorage, int], None], says: str
) -> None:
    study = study_on(storage)
    with storage.lease("s") if leased else contextlib.nullcontext():
        trial, other = study.ask(), study.ask()
        other.report(0.5, 1)
        with pytest.raises(Refused, match=says):
            poison(storage, trial._trial_id)
        other.report(0.25, 2)
        study.tell(trial, 1.0)
    first, second = optuna.load_study(study_name="s", storage=storage.url).trials
    assert (first.value, first.user_attrs, first.params) == (1.0, {}, {})
    assert second.intermediate_values == {1: 0.5, 2: 0.25}


def test_text_that_only_looks_like_poison_is_kept(storage: SqlStorage) -> None:
    study = study_on(storage)
    trial = study.ask()
    for key, value in (("a", r"\u0000"), ("b", r"\\ud800"), ("😀", "😀"), ("c", "\\")):
        trial.set_user_attr(key, value)
    assert study.trials[0].user_attrs == {"a": r"\u0000", "b": r"\\ud800", "😀": "😀", "c": "\\"}


@pytest.mark.fault("40: deleted under a live driver")
def test_a_study_that_was_deleted_under_its_holder_gets_nothing_more(storage: SqlStorage) -> None:
    study = study_on(storage)
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(storage.lease("s"))
        trial = study.ask()
        optuna.delete_study(study_name="s", storage=storage.url)
        again = optuna.create_study(study_name="s", storage=storage.url)
        reused = again.ask()
        trial.report(0.5, 0)
        with pytest.raises(UnknownStudy, match="deleted or renamed"):
            held.flush()
    assert reused.number == 0
    assert again.trials[0].intermediate_values == {}


@pytest.mark.fault("40: renamed under a live driver")
def test_a_study_that_was_renamed_by_copying_starts_a_life_of_its_own(storage: SqlStorage) -> None:
    study = study_on(storage)
    with storage.lease("s"):
        study.optimize(lambda trial: 1.0, n_trials=2)
    optuna.copy_study(
        from_study_name="s", from_storage=storage.url, to_storage=storage.url, to_study_name="t"
    )
    with storage.lease("s") as first, storage.lease("t") as second:
        assert first.uid != second.uid
        study_on(storage, "t").optimize(lambda trial: 1.0, n_trials=1)
        study.optimize(lambda trial: 1.0, n_trials=1)
    assert [len(study_on(storage, name).trials) for name in "st"] == [3, 3]


def test_a_study_is_held_once(storage: SqlStorage) -> None:
    study_on(storage)
    with storage.lease("s"):
        with pytest.raises(Held), storage.lease("s"):
            pass
        with pytest.raises(Held), SqlStorage(storage.url).lease("s"):
            pass
    with storage.lease("s"):
        pass


def test_an_unknown_study_has_no_lease(storage: SqlStorage) -> None:
    with pytest.raises(UnknownStudy, match="nowhere"), storage.lease("nowhere"):
        pass


def test_times_are_utc_in_the_database_wherever_the_process_lives(url: str) -> None:
    code = """
import datetime as dt, sys, optuna, sqlalchemy as sa
from storage import SqlStorage
storage = SqlStorage(sys.argv[1])
study = optuna.create_study(study_name="s", storage=storage)
before = dt.datetime.now(dt.UTC).replace(tzinfo=None)
with storage.lease("s"):
    study.optimize(lambda trial: 1.0, n_trials=1)
study.optimize(lambda trial: 1.0, n_trials=1)
after = dt.datetime.now(dt.UTC).replace(tzinfo=None)
with storage.database.read() as connection:
    for row in connection.execute(sa.text("SELECT datetime_start, datetime_complete FROM trials")):
        for moment in row:
            moment = dt.datetime.fromisoformat(moment) if isinstance(moment, str) else moment
            assert before <= moment <= after, (before, moment, after)
for trial in optuna.load_study(study_name="s", storage=sys.argv[1]).trials + study.trials:
    age = dt.datetime.now() - trial.datetime_start
    assert dt.timedelta(0) <= age < dt.timedelta(minutes=5), age
"""
    environment = {**os.environ, "TZ": "Asia/Tokyo"}
    done = subprocess.run([sys.executable, "-c", code, url], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("leased", [False, True], ids=["shared", "held"])
def test_an_added_trial_of_another_space_is_refused(storage: SqlStorage, leased: bool) -> None:
    study = study_on(storage)
    with storage.lease("s") if leased else contextlib.nullcontext():
        study.add_trial(
            create_trial(params={"k": "a"}, distributions={"k": CategoricalDistribution(["a"])}, value=1.0)
        )
        with pytest.raises(ValueError, match="CategoricalDistribution does not support dynamic"):
            study.add_trial(
                create_trial(
                    params={"k": "b"}, distributions={"k": CategoricalDistribution(["b"])}, value=1.0
                )
            )
        with pytest.raises(Refused, match="NaN"):
            storage.set_trial_state_values(study.ask()._trial_id, TrialState.COMPLETE, [float("nan")])
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]


@pytest.mark.parametrize("leased", [False, True], ids=["shared", "held"])
def test_choices_that_are_equal_stay_what_they_are(storage: SqlStorage, url: str, leased: bool) -> None:
    study = study_on(storage)
    space = {name: CategoricalDistribution(one) for name, one in (("n", [0, 1]), ("flag", [False, True]))}
    with storage.lease("s") if leased else contextlib.nullcontext():
        study.add_trial(create_trial(params={"n": 1, "flag": True}, distributions=space, value=1.0))
        study.tell(study.ask(space), 2.0)
    for trial in SqlStorage(url).get_all_trials(study._study_id):
        assert {name: type(value) for name, value in trial.params.items()} == {"n": int, "flag": bool}
