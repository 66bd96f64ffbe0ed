"""What a person asks of a driver: pause, resume, concurrency, stop; retry and enqueue without one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import tuner
from storage import Database, Refused, UnknownStudy, commands, enqueue, reads
from storage.held import CommandRecord, HeldStudy
from storage.views import Driving
from tests.test_optimize import make, run, sphere
from tuner.assignment import Assignment
from tuner.commands import Decision, Orders, decide
from tuner.dispatch import inline
from tuner.dispatch.base import Cluster, Executor, Sink
from tuner.messages import Answer, Ended, Envelope, RankInfo, Released, Started
from tuner.outcome import Outcome, Reason
from tuner.resources import Resources

ROOT = Path(__file__).parent.parent

# ---------------------------------------------------------------------- the decision


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("stop", {"now": 1}, "stop: now is true or false, not 1"),
        ("stop_trial", {"number": 7}, "trial 7 is not running"),
        ("stop_trial", {"number": "7"}, "stop_trial: number is a whole number, not '7'"),
        ("stop_trial", {}, "stop_trial: number is a whole number, not None"),
        ("concurrency", {"most": 0}, "concurrency: most is a whole number of at least 1, or null, not 0"),
        (
            "concurrency",
            {"most": True},
            "concurrency: most is a whole number of at least 1, or null, not True",
        ),
        ("concurrency", {}, "concurrency: most is a whole number of at least 1, or null, not ''"),
        ("pause", None, "pause: the arguments are no JSON object"),
        ("dance", {}, "this driver does not know the command 'dance'"),
    ],
)
def test_a_command_that_cannot_be_done_is_answered_in_one_line_and_changes_nothing(
    name: str, arguments: Any, result: str
) -> None:
    orders = Orders(most=3)
    assert decide(name, arguments, orders, [1, 2]) == Decision(orders=orders, result=result)


def test_commands_change_what_holds_from_then_on() -> None:
    assert decide("pause", {}, Orders(), ()).orders == Orders(paused=True)
    assert decide("resume", {}, Orders(paused=True, most=2), ()).orders == Orders(most=2)
    assert decide("concurrency", {"most": 2}, Orders(), ()).orders == Orders(most=2)
    assert decide("concurrency", {"most": None}, Orders(most=2), ()).orders == Orders()
    stopped = decide("stop", {"now": True}, Orders(paused=True), [4, 5])
    assert (stopped.orders.draining, stopped.stop, stopped.reason) == (
        "stopped by command",
        (4, 5),
        Reason.INTERRUPTED,
    )
    late = decide("pause", {}, stopped.orders, [4])
    assert late.orders == stopped.orders
    assert late.result == "the study is ending (stopped by command), and nothing new starts"


# ---------------------------------------------------------------------- a real driver, played


class Played(Executor):
    """Four slots; an attempt runs until it is told to end. ``play`` goes on at each look of the driver."""

    def __init__(self, play: Callable[[Played], Iterator[None]]) -> None:
        self.running: dict[int, Assignment] = {}
        self.started: list[int] = []
        self._waiting: list[tuple[int, Any]] = []
        self._play = play(self)
        self._seq = 0
        self._sink: Sink | None = None

    def open(
        self, run: str, epoch: int, resources: Sequence[Resources], sink: Sink, study: str = ""
    ) -> Cluster:
        self._sink = sink
        return Cluster(slots=4, description="played", home="local/played")

    def slots(self) -> int:
        return 4

    def start(self, assignment: Assignment) -> None:
        self.running[assignment.number] = assignment
        self.started.append(assignment.number)
        self._waiting.append(
            (assignment.number, Started(ranks=(RankInfo(rank=0, host="h", node="", pid=1),)))
        )

    def finish(self, number: int, reason: Reason = Reason.COMPLETE) -> None:
        values = (1.0,) if reason is Reason.COMPLETE else ()
        self._waiting += [
            (number, Ended(outcome=Outcome(reason=reason, values=values))),
            (number, Released()),
        ]

    def poll(self, timeout: float) -> None:
        waiting, self._waiting = self._waiting, []
        for number, message in waiting:
            assert self._sink is not None
            self._seq += 1
            attempt = self.running[number].attempt
            if isinstance(message, Released):
                del self.running[number]
            self._sink(Envelope(number=number, attempt=attempt, rank=0, seq=self._seq, message=message))
        next(self._play, None)
        time.sleep(min(timeout, 0.02))  # the pace at which a driver looks, not what the test waits for

    def stop(self, number: int, reason: Reason, grace: float) -> None:
        self.finish(number, reason)

    def kill(self, number: int, reason: Reason, message: str) -> None:
        self.finish(number, reason)

    def answer(self, number: int, rank: int, answer: Answer) -> None: ...

    def committed(self, number: int, rank: int, seq: int) -> None: ...

    def close(self) -> None: ...


def until(condition: Callable[[], object]) -> Iterator[None]:
    """Let the driver go on until something holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        yield


@pytest.fixture
def asked(sqlite_url: str) -> Iterator[Asked]:
    make(sqlite_url)
    asked = Asked(sqlite_url)
    yield asked
    asked.database.dispose()


class Asked:
    """A person at the study ``s``."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)

    def send(self, name: str, **arguments: Any) -> int:
        found = reads.study(self.database.engine, "s")
        assert found is not None
        return commands.send(self.database, found.uid, name, arguments, "ann")

    def answer(self, name: str, result: str = "done", **arguments: Any) -> Iterator[None]:
        command = self.send(name, **arguments)
        yield from until(lambda: commands.result(self.database, command) is not None)
        assert commands.result(self.database, command) == result

    def driving(self) -> Driving | None:
        found = reads.study(self.database.engine, "s")
        assert found is not None
        return found.driving


def drive(
    monkeypatch: pytest.MonkeyPatch, url: str, play: Callable[[Played], Iterator[None]], **options: Any
) -> Played:
    """Run the study ``s`` on an executor that plays."""
    executor = Played(play)
    monkeypatch.setattr(inline, "InlineExecutor", lambda objective: executor)
    study = tuner.load_study("s", storage=url)
    tuner.optimize(study, sphere, progress=False, executor="inline", **options)
    return executor


def test_a_driver_is_paused_resumed_narrowed_and_stopped(
    monkeypatch: pytest.MonkeyPatch, sqlite_url: str, asked: Asked
) -> None:
    def play(executor: Played) -> Iterator[None]:
        yield from until(lambda: len(executor.running) == 3)
        yield from until(lambda: asked.driving() == Driving(phase="running", most=3))
        yield from asked.answer("pause")
        assert asked.driving() == Driving(phase="paused", most=3)  # before it is answered
        for number in (0, 1, 2):
            executor.finish(number)
        yield from until(lambda: not executor.running)
        yield from asked.answer("stop_trial", "trial 0 is not running", number=0)  # a second look later
        assert executor.started == [0, 1, 2]
        yield from asked.answer("concurrency", most=1)
        yield from asked.answer("resume")
        yield from until(lambda: asked.driving() == Driving(phase="running", most=1))
        assert executor.started == [0, 1, 2, 3]
        yield from asked.answer("concurrency", most=4)  # more than the run was started with
        yield from until(lambda: len(executor.running) == 4)
        yield from asked.answer("concurrency", most=None)
        yield from until(lambda: asked.driving() == Driving(phase="running", most=3))
        yield from asked.answer("stop_trial", number=4)
        yield from until(lambda: 4 not in executor.running)
        yield from asked.answer("stop")
        yield from until(
            lambda: asked.driving() == Driving(phase="draining", why="stopped by command", most=3)
        )
        yield from asked.answer("resume", "the study is ending (stopped by command), and nothing new starts")
        yield from asked.answer("stop", now=True)

    executor = drive(monkeypatch, sqlite_url, play, n_trials=20, max_concurrent=3)
    assert executor.started == [0, 1, 2, 3, 4, 5, 6]
    study = tuner.load_study("s", storage=sqlite_url)
    states = [trial.state for trial in study.trials]
    assert states[:3] == [TrialState.COMPLETE] * 3
    assert states[4] is TrialState.FAIL
    found = reads.study(asked.database.engine, "s")
    assert found is not None
    assert (found.driving, found.stop_reason) == (None, "stopped by command")
    names = ["pause", "stop_trial", "concurrency", "resume", "concurrency", "concurrency", "stop_trial"]
    rows = list(reversed(commands.recent(asked.database.engine, "s")))
    assert [row.name for row in rows] == [*names, "stop", "resume", "stop"]
    assert {row.author for row in rows} == {"ann"}
    assert all(row.done_at is not None and row.result for row in rows)
    assert commands.recent(asked.database.engine, "s", limit=1)[0].arguments == {"now": True}
    log = [event.detail for event in reads.events(asked.database.engine, "s") if event.kind == "command"]
    assert {"name": "concurrency", "most": 4, "author": "ann", "result": "done"} in log


def test_a_paused_study_ends_only_when_its_budget_is_spent(
    monkeypatch: pytest.MonkeyPatch, sqlite_url: str, asked: Asked
) -> None:
    def play(executor: Played) -> Iterator[None]:
        yield from until(lambda: executor.running)
        yield from asked.answer("pause")
        executor.finish(0)
        yield from until(lambda: not executor.running)
        yield from asked.answer("pause")  # half a second in which it could have ended, and has not
        yield from asked.answer("resume")
        yield from until(lambda: executor.running)
        yield from asked.answer("pause")
        executor.finish(1)

    executor = drive(monkeypatch, sqlite_url, play, n_trials=2, max_concurrent=1, resource_timeout=0.1)
    assert executor.started == [0, 1]


PERSON = """
import sys, time
from storage import Database, commands, reads
database = Database(sys.argv[1])

def study():
    return reads.study(database.engine, "s")

def ask(name, **arguments):
    command = commands.send(database, study().uid, name, arguments, "another process")
    while (answer := commands.result(database, command)) is None:
        time.sleep(0.02)
    return answer

while study().driving is None:
    time.sleep(0.02)
print(ask("pause"))
while study().driving.phase != "paused":
    time.sleep(0.02)
with database.write() as connection:  # rows by hand
    for arguments in ("[1", "[" * 100_000):
        connection.exec_driver_sql(
            "INSERT INTO tuner_commands (study_uid, name, arguments, author, created_at) "
            f"SELECT study_uid, 'stop', '{arguments}', 'hand', created_at FROM tuner_commands LIMIT 1"
        )
print(ask("resume"))
print(ask("stop"))
"""


def slowly(trial: Any) -> float:
    time.sleep(0.01)
    return 1.0


def test_another_process_pauses_an_inline_driver_and_a_row_by_hand_harms_nothing(
    sqlite_url: str, asked: Asked
) -> None:
    old = asked.send("stop")
    person = subprocess.Popen(
        [sys.executable, "-c", PERSON, sqlite_url], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    run(tuner.load_study("s", storage=sqlite_url), slowly)
    assert person.communicate(timeout=30)[0].split() == ["done", "done", "done"]
    assert commands.result(asked.database, old) == "no driver was there to do it"
    by_hand = [row for row in commands.recent(asked.database.engine, "s") if row.author == "hand"]
    assert [row.result for row in by_hand] == ["stop: the arguments are no JSON object"] * 2


# ---------------------------------------------------------------------- once more


def learner(trial: Any) -> float:
    """Saves at each step; fails at step 3 unless it is told not to."""
    trial.suggest_float("x", 0, 1)
    trial.suggest_categorical("kind", ["a", None])
    saved = trial.load_checkpoint()
    trial.set_user_attr("began", saved.step + 1 if saved else 0)
    for step in range(saved.step + 1 if saved else 0, 5):
        trial.report(float(step), step)
        trial.save_checkpoint({"step": step}, step)
        if step == 3 and "retry_of" not in trial.user_attrs:
            raise ValueError("not yet")
    return 1.0


def test_a_command_that_is_taken_back_at_the_last_moment_is_not_carried_out(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tuner.create_study("main", storage=url, sampler="random", seed=1)
    database, read, taken_back = Database(url), HeldStudy.commands, []

    def read_and_take_back(held: HeldStudy) -> list[CommandRecord]:
        found = read(held)
        taken_back.extend(commands.withdraw(database, one.command_id) for one in found)
        return found

    def ask_to_stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.number == 1:
            uid = study._storage.get_study_system_attrs(study._study_id)["tuner:uid"]
            commands.send(database, uid, "stop", {"now": True}, "somebody")

    monkeypatch.setattr(HeldStudy, "commands", read_and_take_back)
    monkeypatch.setattr("tuner.driver.REFRESH_EVERY", 0.0)
    run(study, slowly, n_trials=8, callbacks=[ask_to_stop])
    assert taken_back == [True]
    assert len(study.trials) == 8
    assert [row.name for row in commands.recent(database.engine, "main")] == []
    database.dispose()


def test_a_retry_starts_from_the_checkpoint_of_the_trial_that_it_repeats(url: str) -> None:
    study = make(url)
    run(study, learner, 2)
    database = Database(url)
    done = enqueue.again(database, "s", [1, 0], from_checkpoint=True, author="ann")
    assert (done.numbers, done.n_trials, done.needed, done.over_budget) == ((2, 3), 2, 4, True)
    fresh = enqueue.again(database, "s", [0], from_checkpoint=False, author="ann")
    assert fresh.numbers == (4,)
    waiting = optuna.load_study(study_name="s", storage=url).trials[2]
    assert waiting.state is TrialState.WAITING
    assert waiting.system_attrs["fixed_params"] == study.trials[1].params
    run(tuner.load_study("s", storage=url), learner, 5)
    trials = tuner.load_study("s", storage=url).trials
    assert [trial.state.name for trial in trials] == ["FAIL", "FAIL", "COMPLETE", "COMPLETE", "FAIL"]
    assert trials[2].params == trials[1].params
    assert trials[4].params == trials[0].params
    assert trials[2].user_attrs == {"retry_of": 1, "began": 4}
    assert trials[4].user_attrs == {"began": 0}
    assert trials[2].intermediate_values == {step: float(step) for step in range(5)}
    detail = reads.trial(database.engine, "s", 2)
    assert detail is not None
    assert [row.resumed_step for row in detail.attempt_rows] == [3]
    said = {event.kind: event.detail for event in detail.event_rows}
    assert said["enqueued"] == {"retry_of": 1, "author": "ann"}
    assert said["retry_of"] == {"of": 1, "step": 3}
    asked = [
        (row.name, row.arguments, row.author, row.result) for row in commands.recent(database.engine, "s")
    ]
    assert asked[:2] == [
        ("enqueue", {"numbers": [0]}, "ann", "trial 4 waits"),
        ("retry", {"numbers": [1, 0]}, "ann", "trials 2 to 3 wait"),
    ]
    database.dispose()


def test_a_retry_that_fails_at_once_starts_from_there_again_and_so_does_its_own_retry(
    sqlite_url: str,
) -> None:
    def fragile(trial: Any) -> float:
        if trial.number == 0:
            return learner(trial)
        trial.report(99.0, 7)
        if trial.attempt == 1 and trial.number == 1:
            raise ConnectionError("once more")
        if trial.number == 1:
            raise ValueError("for good")
        return float(trial.load_checkpoint().step)

    study = make(sqlite_url)
    run(study, learner, 1)
    database = Database(sqlite_url)
    enqueue.again(database, "s", [0], from_checkpoint=True, author="ann")
    retry = tuner.Retry(retry_on=(ConnectionError,), backoff=0.0)
    run(tuner.load_study("s", storage=sqlite_url), fragile, 2, retry=retry)
    detail = reads.trial(database.engine, "s", 1)
    assert detail is not None
    assert [row.resumed_step for row in detail.attempt_rows] == [3, 3]
    assert [step for step, _ in detail.curve] == [0, 1, 2, 3, 7]
    enqueue.again(database, "s", [1], from_checkpoint=True, author="ann")
    run(tuner.load_study("s", storage=sqlite_url), fragile, 3)
    assert tuner.load_study("s", storage=sqlite_url).trials[2].value == 3.0
    database.dispose()


def test_a_checkpoint_stays_until_its_retry_has_ended_and_then_goes(sqlite_url: str, tmp_path: Path) -> None:
    """Trial 0 is the worst of eleven, of which ten keep theirs."""
    files: list[bool] = []

    def objective(trial: Any) -> float:
        trial.suggest_float("x", 0, 1)
        files.append(bool(list(tmp_path.glob("*/*/0/**/*.pt"))))
        saved = trial.load_checkpoint()
        if saved is None:
            trial.save_checkpoint({"n": trial.number}, 0)
        return 1.0 if saved or trial.number == 0 else 0.5

    study = make(sqlite_url)
    run(study, objective, 1)
    database = Database(sqlite_url)
    for number in range(1, 11):
        enqueue.with_params(database, "s", {"x": number / 20}, "ann")
    enqueue.again(database, "s", [0], from_checkpoint=True, author="ann")
    run(tuner.load_study("s", storage=sqlite_url), objective, 12)
    assert files == [False, *[True] * 11]
    assert reads.checkpoints(database.engine, "s", 0) == []
    trial = tuner.load_study("s", storage=sqlite_url).trials[11]
    assert (trial.user_attrs["retry_of"], trial.value) == (0, 1.0)
    database.dispose()


def test_a_trial_that_was_just_enqueued_comes_before_a_new_one(sqlite_url: str) -> None:
    def objective(trial: Any) -> float:
        x: float = trial.suggest_float("x", 0, 1)
        time.sleep(0.3)  # a trial of some length
        if trial.number == 1:
            database = Database(sqlite_url)
            enqueue.with_params(database, "s", {"x": 0.25}, "ann")
            database.dispose()
        return x

    study = make(sqlite_url)
    run(study, objective, 3)
    assert study.trials[2].params == {"x": 0.25}


def test_a_retry_without_a_checkpoint_says_so_and_starts_from_nothing(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    study = make(sqlite_url)
    run(study, sphere, 1)
    database = Database(sqlite_url)
    enqueue.again(database, "s", [0], from_checkpoint=True, author="ann")
    run(tuner.load_study("s", storage=sqlite_url), sphere, 2)
    assert "trial 1 is a retry of trial 0, of which no valid checkpoint is left" in caplog.text
    assert tuner.load_study("s", storage=sqlite_url).trials[1].state is TrialState.COMPLETE
    database.dispose()


def test_what_cannot_be_enqueued_is_refused_and_nothing_is_written(url: str) -> None:
    study = make(url)
    study.enqueue_trial({"x": 0.5})
    run(study, sphere, 1)
    study.enqueue_trial({"x": 0.1})
    database = Database(url)

    def again(numbers: list[int], name: str = "s") -> None:
        enqueue.again(database, name, numbers, from_checkpoint=True, author="ann")

    with pytest.raises(Refused, match=r"^study 's' has no trials 7, -1$"):
        again([0, 7, -1])
    with pytest.raises(Refused, match=r"^trial 1 of study 's' did not end yet \(WAITING\): only a"):
        again([0, 1])
    with pytest.raises(Refused, match="at least one"):
        again([])
    with pytest.raises(UnknownStudy, match="no study 'none'"):
        again([0], "none")
    with pytest.raises(Refused, match="not plain data"):
        enqueue.with_params(database, "s", {"x": object()}, "ann")
    assert len(tuner.load_study("s", storage=url).trials) == 2
    assert commands.recent(database.engine, "s") == []
    database.dispose()


def test_a_study_of_plain_optuna_takes_them_as_well(sqlite_url: str) -> None:
    study = optuna.create_study(study_name="plain", storage=sqlite_url)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    database = Database(sqlite_url, create=False)
    assert enqueue.again(database, "plain", [0], from_checkpoint=True, author="ann").numbers == (1,)
    assert commands.recent(database.engine, "plain") == []
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert study.trials[1].params == study.trials[0].params
    database.dispose()
