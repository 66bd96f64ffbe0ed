"""What a study that this process holds promises, in a database and in its double in memory alike."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import optuna
import pytest
from hypothesis import given, settings
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from storage import HeldStudy, Refused, StudyRecord
from storage.held import AttemptRecord
from storage.memory import MemoryStudy
from storage.writes import AddMetric, DropCheckpoints, EndAttempt, StartAttempt
from tests.test_store import held_study
from tuner import samplers
from tuner.attempts import Attempts, Due, Running
from tuner.messages import Log, RankInfo, Report, Saved, UserAttr
from tuner.outcome import Outcome, Reason
from tuner.retry import Retry
from tuner.simulation.files import NoFiles
from tuner.study import DrivenStudy

EXAMPLES = int(os.environ.get("TUNER_EXAMPLES", "1"))
SPACE = {"x": FloatDistribution(0.0, 1.0), "n": IntDistribution(1, 9)}
LOST = Outcome(reason=Reason.RANK_LOST, message="gone")
POLICY = Retry(max_failures=1, backoff=0.0)


class Driven:
    """A held study, and what the driver and the simulation do with it."""

    def __init__(self, held: HeldStudy) -> None:
        self.held = held
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
        self.study = DrivenStudy(held, samplers.sampler("random", 1), pruner)
        self.attempts = Attempts(self.study, POLICY, SPACE, {"commit": "abc"}, clock=float, files=NoFiles())

    def start(self, due: Due | None = None) -> Running:
        due = due or self.attempts.claim()
        running = self.attempts.start(due, self.attempts.draw(due), 1)
        self.held.flush()
        return running

    def say(self, running: Running, *messages: Any) -> None:
        for message in messages:
            self.study.apply(running.trial_id, running.attempt, message)

    def save(self, running: Running, step: int, rank: int = 0, ranks: int = 1) -> None:
        path = f"{running.number}/{running.attempt}/{step}/{rank}"
        self.attempts.save(
            running, rank, Saved(id=0, step=step, path=path, digest="d", size=8, world_size=ranks)
        )

    def trial(self, running: Running) -> FrozenTrial:
        return self.held.image.trial(running.trial_id)


def in_database(folder: Path) -> HeldStudy:
    return held_study(f"sqlite:///{folder / 'held.db'}")


def in_memory(folder: Path) -> HeldStudy:
    return MemoryStudy(StudyRecord(name="s", study_id=1, directions=("minimize",), uid="memory", seed=1))


KINDS: dict[str, Callable[[Path], HeldStudy]] = {"database": in_database, "memory": in_memory}


def let_go(held: HeldStudy) -> None:
    held.close()
    if not isinstance(held, MemoryStudy):
        held.lease.release()
        held.lease.database.dispose()


@pytest.fixture(params=KINDS)
def driven(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Driven]:
    held = KINDS[request.param](tmp_path)
    yield Driven(held)
    let_go(held)


def test_a_new_trial_is_claimed_with_its_number(driven: Driven) -> None:
    dues = [driven.attempts.claim() for _ in range(3)]
    assert [(due.number, due.attempt) for due in dues] == [(0, 1), (1, 1), (2, 1)]
    assert driven.held.owned == {due.trial_id for due in dues}
    for due in dues:
        (record,) = driven.held.attempts(due.trial_id)
        assert (record.number, record.attempt, record.state, record.reason) == (
            due.number,
            1,
            "claimed",
            None,
        )
        assert json.loads(record.attributes or "") == {"user": {}, "system": {}}
        assert (record.relative, record.ranks, record.provenance, record.resumed_step) == (None,) * 4
        assert driven.held.image.trial(due.trial_id).state is TrialState.RUNNING


def test_an_enqueued_trial_is_claimed_first_and_once(driven: Driven) -> None:
    driven.study.enqueue_trial({"x": 0.25}, user_attrs={"note": 1})
    driven.held.flush()
    assert driven.held.image.counts[TrialState.WAITING] == 1
    first, second = driven.start(), driven.start()
    assert (first.number, driven.trial(first).params["x"]) == (0, 0.25)
    assert driven.trial(second).params["x"] != 0.25
    assert json.loads(driven.held.first_attributes(first.trial_id)) == {
        "user": {"note": 1},
        "system": {"fixed_params": {"x": 0.25}},
    }
    assert driven.held.image.counts == {TrialState.RUNNING: 2, TrialState.WAITING: 0}


def test_a_claim_that_waits_for_the_next_commit_is_there_after_it(driven: Driven) -> None:
    found: list[Due] = []
    for _ in range(2):
        driven.attempts.claim_soon(found.append)
    driven.held.flush()
    assert [due.number for due in found] == [0, 1]
    assert [record.state for record in driven.held.attempts()] == ["claimed"] * 2
    assert driven.held.owned == {due.trial_id for due in found}
    assert driven.held.image.counts[TrialState.RUNNING] == 2


def test_a_start_keeps_the_draw_and_where_it_runs(driven: Driven) -> None:
    running = driven.start()
    driven.attempts.place(running, [RankInfo(rank=0, node="a", host="here", pid=1, devices=())])
    driven.attempts.follow(running, "some text")
    driven.held.flush()
    (record,) = driven.held.attempts(running.trial_id)
    assert record.state == "running"
    assert json.loads(record.relative or "") == {}
    assert json.loads(record.provenance or "")["commit"] == "abc"
    assert json.loads(record.ranks or "")[0]["host"] == "here"
    trial = driven.trial(running)
    assert set(trial.params) == set(SPACE)
    assert trial.distributions == SPACE


def test_open_attempts_are_in_the_order_of_their_numbers(driven: Driven) -> None:
    driven.study.enqueue_trial({"x": 0.25})
    found: list[Due] = []
    driven.attempts.claim_soon(found.append)
    driven.held.flush()
    found.append(driven.attempts.claim())
    assert [due.number for due in found] == [1, 0]
    assert [record.number for record in driven.held.attempts()] == [0, 1]


def test_an_end_stands_with_the_state_and_is_said_after_the_commit(driven: Driven) -> None:
    running, said = driven.start(), []
    driven.say(running, Report(step=1, value=0.5))
    state = driven.attempts.end_soon(running, Outcome(reason=Reason.COMPLETE, values=(0.5,)), said.append)
    driven.held.flush()
    assert state is TrialState.COMPLETE
    assert [(one.is_ours, one.state) for one in said] == [(True, TrialState.COMPLETE)]
    trial = driven.trial(running)
    assert (trial.state, trial.values, trial.intermediate_values) == (TrialState.COMPLETE, [0.5], {1: 0.5})
    assert trial.datetime_complete is not None
    (record,) = driven.held.attempts(running.trial_id)
    assert (record.state, record.reason, record.charged) == ("ended", "complete", False)
    assert driven.held.attempts() == []
    assert (driven.held.owned, driven.held.endings) == (set(), {})


def test_a_trial_that_has_ended_takes_nothing_more(driven: Driven) -> None:
    running = driven.start()
    driven.attempts.end(running, Outcome(reason=Reason.PRUNED))
    storage, trial_id = driven.held.storage, running.trial_id
    for change in (
        lambda: storage.set_trial_intermediate_value(trial_id, 1, 0.5),
        lambda: storage.set_trial_user_attr(trial_id, "k", 1),
        lambda: storage.set_trial_param(trial_id, "y", 0.5, SPACE["x"]),
        lambda: storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0]),
    ):
        with pytest.raises(UpdateFinishedTrialError):
            change()
    key = {"study_uid": driven.held.uid, "trial_id": trial_id, "attempt": 1}
    end = EndAttempt(**key, epoch=1, reason="nan", charged=True)
    metric = AddMetric(**key, name="late", step=1, value=1.0)
    start = StartAttempt(**key, epoch=1, relative='{"x": 1}')
    assert driven.held.flush(end, metric, start)[0] is False
    (record,) = driven.held.attempts(trial_id)
    assert (record.state, record.reason, record.relative) == ("ended", "pruned", "{}")
    assert driven.held.logged(trial_id, 1) == set()
    assert driven.trial(running).state is TrialState.PRUNED


def test_a_trial_that_waits_can_be_told(driven: Driven) -> None:
    driven.study.enqueue_trial({"x": 0.25})
    driven.held.flush()
    (trial,) = driven.held.image.unfinished()
    assert driven.held.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    assert driven.held.image.counts == {TrialState.FAIL: 1, TrialState.WAITING: 0}
    assert driven.attempts.claim().number == 1


def test_a_retry_without_a_checkpoint_begins_as_the_claim_was(driven: Driven) -> None:
    running = driven.start()
    params = driven.trial(running).params
    driven.say(running, Report(step=1, value=0.5), UserAttr(key="k", value=[1]))
    due = driven.attempts.end(running, LOST)
    assert isinstance(due, Due)
    assert (due.attempt, due.resume, len(due.history)) == (2, None, 1)
    trial = driven.trial(running)
    assert (trial.state, trial.intermediate_values, trial.user_attrs) == (TrialState.RUNNING, {}, {})
    first, second = driven.held.attempts(running.trial_id)
    assert (first.state, first.reason, first.charged) == ("ended", "rank_lost", True)
    assert (second.attempt, second.state, second.resumed_step) == (2, "claimed", None)
    assert [record.attempt for record in driven.held.attempts()] == [1, 2]
    driven.start(due)
    assert driven.trial(running).params == params
    assert driven.attempts.end(driven.start(due), LOST)


def test_a_retry_goes_on_from_the_newest_whole_checkpoint(driven: Driven) -> None:
    running = driven.start()
    for step in (1, 2, 3):
        driven.say(running, Report(step=step, value=0.5 / step), UserAttr(key="seen", value=step))
        driven.save(running, step, 0, ranks=2)
        if step < 3:
            driven.save(running, step, 1, ranks=2)
    parts = [(one.step, one.rank) for one in driven.held.checkpoints(running.trial_id)]
    assert parts == [(3, 0), (2, 0), (2, 1), (1, 0), (1, 1)]
    assert driven.held.checkpointed() == {running.trial_id}
    due = driven.attempts.end(running, LOST)
    assert isinstance(due, Due)
    assert due.resume is not None
    assert due.resume.step == 2
    trial = driven.trial(running)
    assert trial.intermediate_values == {1: 0.5, 2: 0.25}
    assert trial.user_attrs == {"seen": 2}
    assert driven.held.attempts(running.trial_id)[1].resumed_step == 2
    again = driven.start(due)
    driven.say(again, Report(step=3, value=0.1))
    driven.save(again, 3)
    driven.attempts.end(again, Outcome(reason=Reason.COMPLETE, values=(0.1,)))
    left = driven.held.checkpoints(running.trial_id)
    assert [(one.attempt, one.step) for one in left] == [(2, 3)]


def test_a_part_that_is_saved_again_replaces_the_first(driven: Driven) -> None:
    running = driven.start()
    driven.save(running, 1)
    driven.save(running, 1)
    assert len(driven.held.checkpoints(running.trial_id)) == 1
    drop = DropCheckpoints(study_uid=driven.held.uid, trial_id=running.trial_id, attempt=1, step=1)
    driven.held.drop_checkpoint(drop)
    assert driven.held.checkpoints(running.trial_id) == []
    assert driven.held.checkpointed() == set()


def test_attributes_are_the_stores_own(driven: Driven) -> None:
    running, given = driven.start(), {"list": [1, None], "deep": {"a": (1, 2)}}
    driven.say(running, UserAttr(key="k", value=given))
    driven.study.set_user_attr("study", given)
    given["list"] = "changed"
    expected = {"list": [1, None], "deep": {"a": [1, 2]}}
    assert driven.trial(running).user_attrs == {"k": expected}
    assert driven.study.user_attrs == {"study": expected}
    assert driven.held.attributes_set == 1
    driven.held.refresh()
    assert driven.study.user_attrs == {"study": expected}


def test_a_trial_that_was_read_does_not_change_under_its_reader(driven: Driven) -> None:
    running = driven.start()
    (read,) = driven.study.get_trials(deepcopy=False)
    driven.say(running, Report(step=1, value=0.5))
    assert read.intermediate_values == {}
    assert driven.trial(running).intermediate_values == {1: 0.5}


def test_metrics_are_known_by_their_attempt(driven: Driven) -> None:
    running = driven.start()
    driven.say(running, Log(step=1, metrics={"loss": 1.0, "lr": 0.1}), Log(step=2, metrics={"loss": 0.5}))
    driven.held.flush()
    assert driven.held.logged(running.trial_id, 1) == {("loss", 1), ("lr", 1), ("loss", 2)}
    assert driven.held.logged(running.trial_id, 2) == set()


def test_a_verdict_notes_the_rung_that_it_came_from(driven: Driven) -> None:
    verdicts = []
    for value in (0.1, 0.2, 0.3):
        running = driven.start()
        driven.say(running, Report(step=1, value=value))
        verdicts.append(driven.study.verdict(running.trial_id, 1))
        assert driven.trial(running).system_attrs == {"completed_rung_0": value}
    assert verdicts == [False, True, True]


def test_what_a_database_refuses_is_refused_and_changes_nothing(driven: Driven) -> None:
    running, storage = driven.start(), driven.held.storage
    before = vars(driven.trial(running)).copy()
    for change in (
        lambda: storage.set_trial_user_attr(running.trial_id, "a\0b", 1),
        lambda: storage.set_trial_user_attr(running.trial_id, "k", object()),
        lambda: storage.set_trial_system_attr(running.trial_id, "k", "a\0b"),
        lambda: storage.set_trial_intermediate_value(running.trial_id, 2**31, 1.0),
        lambda: storage.set_trial_state_values(running.trial_id, TrialState.COMPLETE, [math.nan]),
        lambda: driven.study.set_user_attr("k", {1, 2}),
    ):
        with pytest.raises(Refused):
            change()
    with pytest.raises(ValueError, match="distribution"):
        storage.set_trial_param(running.trial_id, "x", 1.0, IntDistribution(0, 1))
    driven.held.flush()
    assert vars(driven.trial(running)) == before
    assert driven.study.user_attrs == {}
    assert driven.held.refused == {}


def test_an_added_trial_has_a_number_once_it_is_settled(driven: Driven) -> None:
    driven.start()
    added = driven.held.storage.create_new_trial(1, create_trial(value=0.5, params={}, distributions={}))
    assert added < 0
    assert driven.held.storage.get_trial(added).values == [0.5]
    assert [trial.number for trial in driven.study.trials] == [0, 1]
    assert driven.held.owned == {driven.held.image.numbered(0)._trial_id}
    assert driven.held.image.counts == {TrialState.RUNNING: 1, TrialState.COMPLETE: 1}


def test_everything_that_the_holder_of_a_study_may_ask_has_an_answer(tmp_path: Path) -> None:
    held, double = in_database(tmp_path), in_memory(tmp_path)
    asked = [name for name in dir(held) if not name.startswith("_")]
    assert [name for name in asked if not hasattr(double, name)] == []
    assert (double.away, double.queued, double.returned, double.commands()) == (False, 0, 0, [])
    assert double.commits.seconds == 0.0
    let_go(held)


# ---------------------------------------------------------------------- whole histories

steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["claim", "soon", "enqueue", "report", "log", "attr", "save", "lose", "end", "prune", "refresh"]
        ),
        st.integers(0, 4),
        st.floats(0.0, 1.0).map(lambda value: round(value, 3)),
    ),
    max_size=40,
)


def picture(driven: Driven) -> dict[str, Any]:
    """All that a driver can ask of a study, without times, and with numbers for ids."""
    held = driven.held
    held.flush()
    trials = [vars(trial).copy() for trial in held.image.trials()]
    numbers = {trial._trial_id: trial.number for trial in held.image.trials()}
    for trial in trials:
        for name in ("_trial_id", "_datetime_start", "datetime_start", "datetime_complete"):
            trial.pop(name, None)

    def record(one: AttemptRecord) -> tuple[Any, ...]:
        return (one.number, one.attempt, one.state, one.reason, one.charged, one.resumed_step, one.relative,
                one.attributes, one.ranks, one.provenance)  # fmt: skip

    return {
        "trials": trials,
        "counts": +held.image.counts,
        "attempts": {number: [record(one) for one in held.attempts(id_)] for id_, number in numbers.items()},
        "open": [record(one) for one in held.attempts()],
        "checkpoints": {number: held.checkpoints(trial_id) for trial_id, number in numbers.items()},
        "checkpointed": {numbers[trial_id] for trial_id in held.checkpointed()},
        "logged": {number: held.logged(trial_id, 1) for trial_id, number in numbers.items()},
        "owned": {numbers[trial_id] for trial_id in held.owned},
        "elsewhere": held.finished_elsewhere,
        "endings": held.endings,
    }


def history(driven: Driven, told: list[tuple[str, int, float]]) -> Iterator[dict[str, Any]]:
    """Do what it says; the study after each step."""
    running: list[Running] = []
    for what, at, value in told:
        one = running[at % len(running)] if running else None
        if what == "claim":
            running.append(driven.start())
        elif what == "soon":
            found: list[Due] = []
            driven.attempts.claim_soon(found.append)
            driven.held.flush()
            running.append(driven.start(found[0]))
        elif what == "enqueue":
            driven.study.enqueue_trial({"x": value}, user_attrs={"at": at})
        elif what == "refresh":
            driven.held.refresh()
        elif one is not None and what == "report":
            driven.say(one, Report(step=at, value=value))
            driven.study.verdict(one.trial_id, one.attempt)
        elif one is not None and what == "log":
            driven.say(one, Log(step=at, metrics={"m": value}))
        elif one is not None and what == "attr":
            driven.say(one, UserAttr(key=f"k{at}", value=[value]))
        elif one is not None and what == "save":
            driven.save(one, at)
        elif one is not None and what == "lose":
            running.remove(one)
            due = driven.attempts.end(one, LOST)
            if isinstance(due, Due):
                running.append(driven.start(due))
        elif one is not None:
            running.remove(one)
            complete = Outcome(reason=Reason.COMPLETE, values=(value,))
            driven.attempts.end(one, complete if what == "end" else Outcome(reason=Reason.PRUNED))
        yield picture(driven)


@settings(max_examples=10 * EXAMPLES)
@given(told=steps)
def test_a_history_is_the_same_in_a_database_and_in_memory(told: list[tuple[str, int, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pair = [Driven(make(Path(folder))) for make in KINDS.values()]
        for step, database, memory in zip(told, *(history(one, told) for one in pair), strict=True):
            assert database == memory, step
        for one in pair:
            let_go(one.held)
