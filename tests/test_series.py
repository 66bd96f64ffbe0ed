"""Attempts that a shell runs in a row, without asking between them: each is as it would be alone."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, distribution_to_json

from tests.test_zygote import assignment as plain_assignment
from tuner.assignment import Assignment, Draw
from tuner.channel import Place
from tuner.dispatch import shell as shells
from tuner.dispatch import working_folder
from tuner.dispatch.pipe import lines
from tuner.dispatch.shell import Shell
from tuner.messages import Answer, Finished, Message, Question, Report, Turn, UserAttr, decode
from tuner.outcome import Outcome, Reason
from tuner.processes import marked

RUN = f"series-tests-{os.getpid()}"

OBJECTIVES = """
import atexit, ctypes, logging.handlers, os, sys, threading, time, warnings, weakref
from pathlib import Path

warnings.filterwarnings("ignore", "of no interest")
calls = []

class Thing:
    pass

def says(trial):
    calls.append(trial.number)
    print(f"I am {trial.number}")
    trial.report(float(trial.number), 0)
    trial.set_user_attr("calls", list(calls))
    trial.set_user_attr("study", os.environ["TUNER_TRIAL"])
    return float(trial.number)

def leaves_a_file(trial):
    Path("left.txt").write_text(f"of {trial.number}")
    trial.set_user_attr("found", sorted(os.listdir()))
    return 0.0

def leaves_things_to_do(trial):
    global held
    held = open("held.txt", "w")
    held.write(f"of {trial.number}")
    cycle = [open("cycle.txt", "w")]
    cycle.append(cycle)
    cycle[0].write(f"of {trial.number}")
    detached = [open("cycle.txt", "a")]
    detached.append(detached)
    detached[0].detach()
    threading.Timer(0.1, Path("thread.txt").write_text, [f"of {trial.number}"]).start()
    atexit.register(Path("at exit.txt").absolute().write_text, f"of {trial.number}")
    atexit.finalized = Thing()  # on a module that stays
    weakref.finalize(atexit.finalized, Path("finalized.txt").absolute().write_text, f"of {trial.number}")
    atexit.handler = logging.handlers.MemoryHandler(100, target=logging.FileHandler("logged.txt"))
    atexit.handler.target.terminator = ""
    atexit.handler.emit(logging.makeLogRecord({"msg": f"of {trial.number}", "levelno": 20}))
    trial.set_user_attr("argv", sys.argv)
    return 0.0

def changes_a_choice(trial):
    chosen = trial.suggest_categorical("layers", [[1], [2, 2]])
    trial.set_user_attr("chosen", list(chosen))
    chosen.append(99)
    return 0.0

def warns(trial):
    warnings.warn("of no interest")
    warnings.warn("of interest")
    return 0.0

def shows_a_bar(trial):
    import optuna.progress_bar
    assert not [module for module in sys.modules.values() if hasattr(module, "no_such_thing")]
    assert "tqdm" not in sys.modules  # so far
    assert optuna.progress_bar._ProgressBar
    inner = optuna.create_study()
    inner.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1, show_progress_bar=True)
    return 0.0

def fails_second(trial):
    print(f"I am {trial.number}")
    if trial.number == 1:
        raise ValueError("of trial 1")
    return 0.0

def dies_second(trial):
    if trial.number == 1:
        ctypes.string_at(0)
    return 0.0

def goes_second(trial):
    if trial.number == 1:
        os._exit(0)
    return 0.0

def asks(trial):
    return trial.suggest_float("x", 0, 1)

def waits_second(trial):
    trial.report(0.0, 0)
    while trial.number == 1 and not Path(os.environ["GATE"]).exists():
        time.sleep(0.01)
    return 0.0

def obeys_second(trial):
    trial.report(0.0, 0)
    while trial.number == 1 and not trial.should_stop():
        time.sleep(0.01)
    return 0.0

def stays_second(trial):
    trial.report(0.0, 0)
    while trial.number == 1:
        time.sleep(0.01)
    return 0.0
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("objectives") / "series_objectives.py"
    path.write_text(OBJECTIVES)
    return path


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    made = Shell(RUN, cpus=1, hide_gpus=True, preload=())
    yield made
    made.shutdown(1)
    assert marked(RUN) == []


@pytest.fixture(params=[True, False], ids=["kept", "fresh"])
def keep(request: pytest.FixtureRequest) -> bool:
    """Whether one process runs all of them, or each has its own."""
    return bool(request.param)


@dataclass
class Heard:
    """What was heard of a series: by place, the messages of each attempt that began, and all processes."""

    messages: dict[int, list[Message]] = field(default_factory=dict)
    pids: list[int] = field(default_factory=list)
    ended: bool = False

    def outcomes(self) -> list[Outcome]:
        """Of the attempts that began, in order; each has exactly one."""
        found = []
        for said in self.messages.values():
            (last,) = [one for one in said if isinstance(one, Finished)]
            assert said[-1] is last
            found.append(last.outcome)
        return found

    def attributes(self, key: str) -> list[object]:
        """What each attempt has set."""
        return [
            one.value
            for said in self.messages.values()
            for one in said
            if isinstance(one, UserAttr) and one.key == key
        ]


def series(file: Path, name: str, count: int, keep: bool, **fields: object) -> list[Assignment]:
    made = {"run": RUN, "keep": keep, "short": True, **fields}
    return [plain_assignment(file, name, number=number, **made) for number in range(count)]


class Run:
    """A series on a shell."""

    def __init__(self, shell: Shell, given: list[Assignment], place: Place | None = None) -> None:
        self.shell, self.given = shell, given
        self.heard = Heard()
        self._seen = 0
        self._take(shell.start(given, place or Place()).batch)

    def until(self, at: int, kind: type[Message]) -> Heard:
        """Until an attempt has said a message of this kind."""
        return self._drain(lambda: any(isinstance(one, kind) for one in self.heard.messages.get(at, ())))

    def to_the_end(self) -> Heard:
        """Until nothing follows."""
        return self._drain(lambda: self.heard.ended)

    def _drain(self, is_enough: object) -> Heard:
        deadline = time.monotonic() + 60
        while not is_enough() and not self.heard.ended:  # type: ignore[operator]
            self._take(self.shell.drain(0, 1, [], 1.0, self._seen))
            assert time.monotonic() < deadline, self.heard
        return self.heard

    def _take(self, batch: object) -> None:
        for seq, line in batch.messages:  # type: ignore[attr-defined]
            message, self._seen = decode(line), seq
            if isinstance(message, Turn):
                assert message.at == len(self.heard.messages)
                self.heard.messages[message.at] = []
                self.heard.pids.append(message.pid)
                continue
            self.heard.messages[len(self.heard.messages) - 1].append(message)
            if isinstance(message, Question):
                self.shell.reply(1, [Answer(id=message.id, value=0.5)])
        self.heard.ended = self.heard.ended or batch.ended  # type: ignore[attr-defined]


def test_each_of_a_series_is_as_it_would_be_alone(shell: Shell, file: Path, keep: bool) -> None:
    heard = Run(shell, series(file, "says", 5, keep)).to_the_end()
    assert heard.outcomes() == [
        Outcome(reason=Reason.COMPLETE, values=(float(number),), log_tail=f"I am {number}\n")
        for number in range(5)
    ]
    assert heard.attributes("calls") == [[0], [1], [2], [3], [4]]  # its module is imported anew
    assert heard.attributes("study") == ["0", "1", "2", "3", "4"]
    reports = [one for said in heard.messages.values() for one in said if isinstance(one, Report)]
    assert [one.value for one in reports] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert len(set(heard.pids)) == (1 if keep else 5)


def test_what_a_later_one_prints_is_not_told_before_its_turn(
    shell: Shell, file: Path, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_hear = threading.Event()

    def late(child: socket.socket) -> Iterator[str]:
        assert may_hear.wait(60)
        yield from lines(child)

    monkeypatch.setattr(shells, "lines", late)
    monkeypatch.setattr(shells, "FOLLOW", 0.0)
    run = Run(shell, series(file, "says", 3, keep))
    try:
        deadline = time.monotonic() + 60
        while shell._nursery.tail() != "I am 2\n":
            assert time.monotonic() < deadline
        shell._follow()
    finally:
        may_hear.set()
    assert len(run.to_the_end().outcomes()) == 3  # the first message was a turn


def test_what_one_leaves_in_its_folder_is_not_the_next_ones(
    shell: Shell, file: Path, keep: bool, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    folder = working_folder.folder_of(str(shell._folder), str(home))
    given = series(file, "leaves_a_file", 3, keep, folder=str(home))
    heard = Run(shell, given, Place(folder=folder)).to_the_end()
    assert heard.attributes("found") == [["left.txt"]] * 3
    left = {path.parent.name: path.read_text() for path in home.rglob("left.txt")}
    assert left == {"0": "of 0", "1": "of 1", "2": "of 2"}


def test_what_one_has_left_to_its_end_is_done(shell: Shell, file: Path, keep: bool, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    folder = working_folder.folder_of(str(shell._folder), str(home))
    given = series(file, "leaves_things_to_do", 3, keep, folder=str(home))
    heard = Run(shell, given, Place(folder=folder)).to_the_end()
    assert {outcome.message for outcome in heard.outcomes()} == {""}
    assert heard.attributes("argv") == [[str(file)]] * 3
    names = {"held.txt", "cycle.txt", "thread.txt"}
    if not keep:  # else once the process ends, which other trials may use
        names |= {"at exit.txt", "finalized.txt", "logged.txt"}
    there = {(path.parent.name, path.name): path for path in home.rglob("*.txt")}
    left = {place: path.read_text() for place, path in there.items() if place[1] in names}
    assert left == {(str(number), name): f"of {number}" for number in range(3) for name in names}


def test_a_choice_that_one_changes_is_not_the_next_ones(shell: Shell, file: Path, keep: bool) -> None:
    with pytest.warns(UserWarning, match="Choices for a categorical"):
        choices = distribution_to_json(CategoricalDistribution(([1], [2, 2])))  # type: ignore[arg-type]
    drawn = {"layers": Draw(value=1.0, distribution=choices)}
    heard = Run(shell, series(file, "changes_a_choice", 3, keep, params=drawn)).to_the_end()
    assert {outcome.reason for outcome in heard.outcomes()} == {Reason.COMPLETE}
    assert heard.attributes("chosen") == [[2, 2]] * 3


def test_what_its_file_says_of_warnings_holds_for_each(shell: Shell, file: Path, keep: bool) -> None:
    for outcome in Run(shell, series(file, "warns", 3, keep)).to_the_end().outcomes():
        assert "of interest" in outcome.log_tail
        assert "of no interest" not in outcome.log_tail


def test_each_may_show_the_bar_of_a_study_of_its_own(shell: Shell, file: Path, keep: bool) -> None:
    for outcome in Run(shell, series(file, "shows_a_bar", 2, keep)).to_the_end().outcomes():
        assert outcome.reason is Reason.COMPLETE
        assert "100%" in outcome.log_tail


def test_what_one_leaves_beside_a_copy_of_the_drivers_folder_goes_to_the_folder_itself(
    shell: Shell, file: Path, keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, copy = tmp_path / "home", tmp_path / "copy"
    home.mkdir()
    copy.mkdir()
    folder = working_folder.folder_of(str(shell._folder), str(home))
    monkeypatch.setattr(shell, "_package", str(copy))
    given = series(file, "leaves_a_file", 3, keep, folder=str(home), sent=str(home))
    Run(shell, given, Place(folder=folder)).to_the_end()
    left = {path.parent.name: path.read_text() for path in tmp_path.rglob("left.txt")}
    assert left == {"0": "of 0", "1": "of 1", "2": "of 2"}
    assert not list(copy.iterdir())


def test_one_that_fails_ends_its_process_and_no_other_attempt(shell: Shell, file: Path, keep: bool) -> None:
    heard = Run(shell, series(file, "fails_second", 3, keep)).to_the_end()
    outcomes = heard.outcomes()
    assert [one.reason for one in outcomes[:2]] == [Reason.COMPLETE, Reason.EXCEPTION]
    assert outcomes[1].message == "ValueError: of trial 1"
    assert outcomes[1].log_tail == "I am 1\n"
    assert len(outcomes) == (2 if keep else 3)  # what has not begun goes elsewhere
    assert [one.log_tail for one in outcomes[2:]] == ["I am 2\n"] * (0 if keep else 1)


def test_one_that_dies_ends_the_series(shell: Shell, file: Path, keep: bool) -> None:
    outcomes = Run(shell, series(file, "dies_second", 3, keep)).to_the_end().outcomes()
    assert [one.reason for one in outcomes] == [Reason.COMPLETE, Reason.RANK_LOST]
    assert "SIGSEGV" in outcomes[1].message


def test_one_that_leaves_without_a_word_is_told(shell: Shell, file: Path, keep: bool) -> None:
    outcomes = Run(shell, series(file, "goes_second", 3, keep)).to_the_end().outcomes()
    assert [one.reason for one in outcomes[:2]] == [Reason.COMPLETE, Reason.RANK_LOST]
    assert outcomes[1].message == "exited with code 0"
    assert len(outcomes) == (2 if keep else 3)


def test_each_asks_its_own_questions(shell: Shell, file: Path, keep: bool) -> None:
    outcomes = Run(shell, series(file, "asks", 3, keep)).to_the_end().outcomes()
    assert [one.values for one in outcomes] == [(0.5,)] * 3


def test_none_begins_after_a_recall(shell: Shell, file: Path, keep: bool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    run = Run(shell, series(file, "waits_second", 4, keep, env={"GATE": str(gate)}))
    run.until(1, Report)
    assert shell.recall(1) == 2
    assert shell.recall(1) == 0
    gate.touch()
    assert [one.reason for one in run.to_the_end().outcomes()] == [Reason.COMPLETE] * 2
    # and the shell serves on
    again = Run(shell, series(file, "says", 3, keep)).to_the_end()
    assert len(again.outcomes()) == 3


def test_to_stop_one_stops_the_one_that_runs_and_begins_no_other(
    shell: Shell, file: Path, keep: bool
) -> None:
    run = Run(shell, series(file, "obeys_second", 4, keep))
    run.until(1, Report)
    shell.stop(1, 0)  # it has ended: nobody is meant
    assert shell.recall(1) == 2
    shell.stop(1, 1)
    outcomes = run.to_the_end().outcomes()
    assert [one.reason for one in outcomes] == [Reason.COMPLETE, Reason.INTERRUPTED]


def test_to_kill_one_kills_only_the_one_that_runs(shell: Shell, file: Path, keep: bool) -> None:
    run = Run(shell, series(file, "stays_second", 4, keep))
    run.until(1, Report)
    shell.kill(1, 0)
    shell.kill(1, 3)
    shell.kill(1, 1)
    outcomes = run.to_the_end().outcomes()
    assert [one.reason for one in outcomes] == [Reason.COMPLETE, Reason.RANK_LOST]
    assert "SIGKILL" in outcomes[1].message


def test_one_that_is_hit_by_the_end_of_another_is_interrupted(shell: Shell, file: Path) -> None:
    run = Run(shell, series(file, "stays_second", 3, True))
    heard = run.until(1, Report)
    shell._killed = 0  # the driver meant the one before, which had just ended
    os.kill(heard.pids[1], signal.SIGKILL)
    last = run.to_the_end().outcomes()[-1]
    assert last.reason is Reason.INTERRUPTED
    assert last.message == "its process was ended for trial 0, which ran there just before"


def test_who_takes_over_gets_the_one_that_runs_and_what_it_said(
    file: Path, keep: bool, tmp_path: Path
) -> None:
    made = Shell(RUN, cpus=1, hide_gpus=True, preload=())
    try:
        gate = tmp_path / "gate"
        given = series(file, "waits_second", 3, keep, env={"GATE": str(gate)})
        run = Run(made, given)
        run.until(1, Report)
        found = made.adopt(2)
        assert found.assignment == given[1]
        gate.touch()
        messages: list[Message] = []
        deadline = time.monotonic() + 60
        while True:
            batch = made.drain(0, 2, [], 1.0)
            messages = [decode(line) for _, line in batch.messages]
            if batch.ended:
                break
            assert time.monotonic() < deadline
        assert [type(one) for one in messages] == [Report, Finished]  # nothing of the one before, or after
    finally:
        made.shutdown(2)
