"""The contract of an executor, run on each implementation.

A new executor adds itself to ``EXECUTORS``; tests of what only one can do stand below.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tuner.assignment import Assignment, ObjectiveRef
from tuner.dispatch.base import Executor
from tuner.dispatch.inline import InlineExecutor, first_that_fits
from tuner.errors import Infeasible
from tuner.messages import Answer, Ask, Ended, Envelope, Finished, Question, Released, Report, Sample, Started
from tuner.outcome import Outcome, Reason
from tuner.resources import Resources

EXECUTORS = ["inline", "ray"]
RUN = "contract-tests"

OBJECTIVES = """
import os, sys, threading, time
import optuna

def quadratic(trial):
    x = trial.suggest_float("x", -1, 1)
    for step in range(3):
        trial.report(x * x, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x * x

def fails(trial):
    trial.report(1.0, 0)
    raise ValueError("boom")

def reports_until_stopped(trial):
    for step in range(10**6):
        trial.report(0.0, step)
        trial.should_prune()
        time.sleep(0.001)

def checkpoints_when_asked(trial):
    for step in range(10**6):
        trial.report(0.0, step)
        if trial.should_stop():
            return 0.0
        trial.should_prune()

def speaks_from_threads(trial):
    def speak(start):
        for step in range(start, start + 20):
            trial.report(0.0, step)
            trial.should_prune()
            trial.suggest_float(f"x{step}", 0, 1)
    threads = [threading.Thread(target=speak, args=(100 * one,)) for one in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0.0

def asks_the_study(trial):
    try:
        trial.study.best_value
    except ValueError as error:
        trial.set_user_attr("error", str(error))
    return trial.study.user_attrs["answer"]
"""


class Driver:
    """Answers questions as told, keeps every envelope, and polls until an attempt is released."""

    def __init__(self, executor: Executor, file: Path) -> None:
        self.executor = executor
        self.file = file
        self.seen: list[Envelope] = []
        self.answers: dict[str, Any] = {"Sample": 0.5, "Ask": False}
        self.on_message: Callable[[Envelope], None] = lambda envelope: None

    def sink(self, envelope: Envelope) -> None:
        self.seen.append(envelope)
        message = envelope.message
        if isinstance(message, Question):
            answer = self.answers.get(type(message).__name__)
            answer = answer(message) if callable(answer) else answer
            error = str(answer) if isinstance(answer, Exception) else ""
            reply = Answer(id=message.id, value=None if error else answer, error=error)
            self.executor.answer(envelope.number, envelope.rank, reply)
        self.executor.committed(envelope.number, envelope.rank, envelope.seq)
        self.on_message(envelope)

    def start(self, name: str, number: int = 0, **fields: Any) -> None:
        plain: dict[str, Any] = {
            "run": RUN,
            "epoch": 1,
            "study": "s",
            "directions": ("minimize",),
            "number": number,
            "attempt": 1,
            "seed": 1,
            "started": "2026-01-01T00:00:00",
            "resources": Resources(cpus=1, gpus=0),
            "objective": ObjectiveRef(file=str(self.file), module=self.file.stem, name=name),
        }
        self.executor.start(Assignment(**{**plain, **fields}))

    def until_released(self, number: int = 0, bound: float = 60) -> Outcome:
        """Poll until the attempt is released; its outcome."""
        deadline = time.monotonic() + bound
        while not any(isinstance(message, Released) for message in self.messages(number)):
            assert time.monotonic() < deadline, self.messages(number)
            self.executor.poll(0.1)
        (ended,) = [message for message in self.messages(number) if isinstance(message, Ended)]
        return ended.outcome

    def messages(self, number: int = 0) -> list[Any]:
        return [envelope.message for envelope in self.seen if envelope.number == number]


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Executor]:
    """One for all tests, since a Ray and a group cost seconds; each test opens it anew."""
    import ray

    from tuner.dispatch.ray_cluster import RayExecutor

    context = ray.init(
        address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )
    made = RayExecutor()
    yield made
    made.close()
    ray.shutdown()
    shutil.rmtree(context.address_info["session_dir"], ignore_errors=True)


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param == "ray":
        yield request.getfixturevalue("on_ray")
        return
    made = InlineExecutor()
    yield made
    made.close()


@pytest.fixture
def driver(executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("contract_objectives", None)
    file = tmp_path / "contract_objectives.py"
    file.write_text(OBJECTIVES)
    made = Driver(executor, file)
    cluster = executor.open(RUN, 1, [Resources(cpus=1, gpus=0)], made.sink)
    assert cluster.slots >= 1
    assert cluster.description
    return made


def test_an_attempt_starts_speaks_ends_and_is_released_in_order(driver: Driver) -> None:
    driver.start("quadratic")
    assert driver.seen == []  # start() delivers nothing itself
    assert driver.until_released() == Outcome(reason=Reason.COMPLETE, values=(0.25,))
    kinds = [type(message).__name__ for message in driver.messages()]
    assert kinds == ["Started", "Sample", "Param", *["Report", "Ask"] * 3, "Ended", "Released"]
    assert Finished.__name__ not in kinds
    started = driver.messages()[0]
    assert [info.rank for info in started.ranks] == [0]
    assert started.ranks[0].pid > 0
    assert started.ranks[0].host


def test_messages_of_a_rank_are_numbered_without_gaps(driver: Driver) -> None:
    driver.start("quadratic")
    driver.until_released()
    own = [one for one in driver.seen if not isinstance(one.message, Started | Ended | Released)]
    assert [one.seq for one in own] == list(range(own[0].seq, own[0].seq + len(own)))
    assert {(one.number, one.attempt, one.rank) for one in own} == {(0, 1, 0)}


def test_questions_get_the_drivers_answers(driver: Driver) -> None:
    driver.answers = {"Sample": -1.0, "Ask": lambda question: question.ordinal == 2}
    driver.start("quadratic")
    assert driver.until_released().reason is Reason.PRUNED
    asked = [message for message in driver.messages() if isinstance(message, Question)]
    assert [type(question) for question in asked] == [Sample, Ask, Ask]
    assert [message.value for message in driver.messages() if isinstance(message, Report)] == [1.0, 1.0]


def test_threads_of_an_objective_get_the_answers_to_their_own_questions(driver: Driver) -> None:
    driver.start("speaks_from_threads")
    assert driver.until_released() == Outcome(reason=Reason.COMPLETE, values=(0.0,))
    asked = [message.name for message in driver.messages() if isinstance(message, Sample)]
    assert len(asked) == len(set(asked)) == 80


def test_a_refusal_of_the_driver_reaches_the_objective(driver: Driver) -> None:
    driver.answers = {
        "Call": lambda question: (
            {"answer": 4} if question.method == "user_attrs" else RuntimeError("ValueError: none yet")
        )
    }
    driver.start("asks_the_study")
    assert driver.until_released().values == (4.0,)
    (attribute,) = [message for message in driver.messages() if type(message).__name__ == "UserAttr"]
    assert attribute.value == "none yet"


def test_an_exception_ends_its_attempt_only(driver: Driver) -> None:
    driver.start("fails", number=0)
    first = driver.until_released(0)
    assert (first.reason, first.message) == (Reason.EXCEPTION, "ValueError: boom")
    assert first.exception == "ValueError"
    assert "boom" in first.traceback
    driver.start("quadratic", number=1)
    assert driver.until_released(1).reason is Reason.COMPLETE


def test_a_file_that_cannot_be_imported_ends_the_attempt(driver: Driver, tmp_path: Path) -> None:
    broken = tmp_path / "contract_broken.py"
    broken.write_text("import no_such_module_at_all\n")
    driver.start("f", objective=ObjectiveRef(file=str(broken), module=broken.stem, name="f"))
    assert driver.until_released().reason is Reason.IMPORT_ERROR


@pytest.mark.parametrize("reason", [Reason.INTERRUPTED, Reason.STOPPED, Reason.TIMEOUT])
@pytest.mark.parametrize("name", ["reports_until_stopped", "checkpoints_when_asked"])
def test_an_attempt_that_is_asked_to_stop_ends_with_the_reason(
    driver: Driver, name: str, reason: Reason
) -> None:
    def stop(envelope: Envelope) -> None:
        if isinstance(envelope.message, Report):
            driver.executor.stop(0, reason, 30)

    driver.on_message = stop
    driver.start(name)
    assert driver.until_released().reason is reason


def test_a_finish_before_the_stop_took_effect_stands(driver: Driver) -> None:
    def stop(envelope: Envelope) -> None:
        if isinstance(envelope.message, Ask) and envelope.message.ordinal == 3:
            driver.executor.stop(0, Reason.INTERRUPTED, 30)

    driver.on_message = stop
    driver.start("quadratic")
    assert driver.until_released() == Outcome(reason=Reason.COMPLETE, values=(0.25,))


def test_a_killed_attempt_ends_with_reason_and_message(driver: Driver) -> None:
    def kill(envelope: Envelope) -> None:
        if isinstance(envelope.message, Report):
            driver.executor.kill(0, Reason.STALLED, "no report in 5 s")

    driver.on_message = kill
    driver.start("reports_until_stopped")
    outcome = driver.until_released()
    assert (outcome.reason, outcome.message) == (Reason.STALLED, "no report in 5 s")


def test_nothing_follows_the_end(driver: Driver) -> None:
    driver.start("quadratic")
    driver.until_released()
    driver.executor.stop(0, Reason.STOPPED, 1)
    driver.executor.kill(0, Reason.STALLED, "late")
    driver.executor.answer(0, 0, Answer(id=1, value=1))
    driver.executor.committed(0, 0, 3)
    driver.executor.poll(0.01)
    assert isinstance(driver.seen[-1].message, Released)
    assert sum(isinstance(one.message, Ended) for one in driver.seen) == 1


def test_a_poll_with_nothing_to_do_returns_in_time(driver: Driver) -> None:
    driver.executor.poll(0)
    driver.executor.poll(0.01)
    assert driver.seen == []


def test_closing_twice_is_harmless(driver: Driver) -> None:
    driver.executor.close()
    driver.executor.close()


# ----------------------------------------------------------------- inline only


def test_inline_runs_one_rank() -> None:
    with pytest.raises(Infeasible, match=r"executor='inline' runs one rank.*ask for 2"):
        InlineExecutor().open(RUN, 1, [Resources(ranks=2)], lambda envelope: None)


def test_inline_refuses_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.dispatch.inline.glob.glob", lambda pattern: ["/dev/nvidia0"])
    with pytest.raises(Infeasible, match="needs 2 GPUs and this machine has 1"):
        InlineExecutor().open(RUN, 1, [Resources(gpus=2)], lambda envelope: None)
    assert first_that_fits([Resources(gpus=2), Resources()]).gpus == 1


@pytest.fixture
def inline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("contract_objectives", None)
    file = tmp_path / "contract_objectives.py"
    file.write_text(
        OBJECTIVES
        + textwrap.dedent(
            """
            def swallows(trial):
                for step in range(3):
                    try:
                        trial.report(0.0, step)
                    except Exception:
                        pass
                return 1.0
            """
        )
    )
    made = Driver(InlineExecutor(), file)
    made.executor.open(RUN, 1, [Resources()], made.sink)
    return made


@pytest.mark.parametrize("name", ["quadratic", "swallows"])
def test_an_error_of_the_driver_is_not_the_trials(inline: Driver, name: str) -> None:
    def break_down(envelope: Envelope) -> None:
        if isinstance(envelope.message, Report):
            raise LookupError("the study is held by another driver")

    inline.on_message = break_down
    inline.start(name)
    with pytest.raises(LookupError, match="held"):
        inline.executor.poll(0)
    assert not any(isinstance(message, Ended) for message in inline.messages())


def test_an_attempt_that_is_killed_before_it_began_never_runs(inline: Driver) -> None:
    inline.start("quadratic")
    inline.executor.kill(0, Reason.STOPPED, "by a person")
    assert inline.until_released() == Outcome(reason=Reason.STOPPED, message="by a person")
    assert [type(message) for message in inline.messages()] == [Ended, Released]


def test_an_unanswered_question_fails_the_trial(inline: Driver) -> None:
    inline.executor.open(RUN, 1, [Resources()], inline.seen.append)
    inline.start("quadratic")
    assert "did not answer Sample" in inline.until_released().message
