"""A shell forks ranks from its zygote, keeps what they say until it is durable, and leaves nothing behind."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tuner.assignment import Assignment, Draw, ObjectiveRef
from tuner.channel import Place
from tuner.dispatch import shell as shells
from tuner.dispatch import working_folder
from tuner.dispatch.shell import Shell, StaleEpoch
from tuner.dispatch.turns import LAST
from tuner.messages import Answer, Finished, Message, Output, Question, Report, Sample, UserAttr, decode
from tuner.outcome import Outcome, Reason
from tuner.processes import is_gone, marked
from tuner.resources import Resources

RUN = f"zygote-tests-{os.getpid()}"

OBJECTIVES = """
import ctypes, os, signal, subprocess, sys, threading, time

def quadratic(trial):
    x = trial.suggest_float("x", -1, 1)
    trial.report(x, 0)
    return x * x

def reports(trial):
    for step in range(500):
        trial.report(float(step), step)
    return 0.0

def closes_its_output(trial):
    print("before")
    sys.stdout.close()
    return 0.0

def prints_lines(trial):
    for step in range(500):
        print(f"epoch {step}")
    return 0.0

def waits(trial):
    trial.report(0.0, 0)
    while True:
        time.sleep(0.01)

def prints(trial):
    print("first line", flush=True)
    trial.suggest_float("x", 0, 1)
    print("second line", flush=True)
    trial.suggest_float("y", 0, 1)
    return 0.0

def obeys(trial):
    while not trial.should_stop():
        time.sleep(0.01)
    raise KeyboardInterrupt

def ends(trial):
    trial.report(0.0, 0)
    os.write(1, b"last words")
    os._exit(3)

def forks_and_both_return(trial):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return 3.0 if child else -1.0

def closes_all_files(trial):
    os.closerange(3, 4096)
    trial.report(1.0, 0)

def segfaults(trial):
    ctypes.string_at(0)

def leaves_a_helper(trial):
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    trial.set_user_attr("helper", helper.pid)
    return 1.0

def leaves_a_helper_and_waits(trial):
    leaves_a_helper(trial)
    waits(trial)

def tells(trial):
    status = open("/proc/self/status").read()
    blocked = next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk"))
    trial.set_user_attr("told", {
        "blocked": int(blocked, 16),
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "terminate": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "main": threading.current_thread() is threading.main_thread(),
        "threads": threading.active_count(),
        "leader": os.getsid(0) == os.getpid(),
        "folder": os.getcwd(),
        "environment": {name: os.environ.get(name) for name in
                        ("TUNER_RUN", "TUNER_TRIAL", "TUNER_STUDY", "GIVEN", "OMP_NUM_THREADS",
                         "CUDA_VISIBLE_DEVICES", "TUNER_STORAGE", "PGPASSWORD")},
        "zygote": os.getppid(),
    })
    return 0.0
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("objectives") / "zygote_objectives.py"
    path.write_text(OBJECTIVES)
    return path


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TUNER_STORAGE", "postgresql://ann:secret@db/tuner")
        environment.setenv("PGPASSWORD", "secret")
        made = Shell(RUN, cpus=1, hide_gpus=True, preload=("no_such_module_at_all",))
    yield made
    made.shutdown(1)
    assert marked(RUN) == []
    assert not made._folder.exists()


def assignment(file: Path, name: str, **fields: Any) -> Assignment:
    plain: dict[str, Any] = {
        "run": RUN,
        "epoch": 1,
        "study": "s",
        "directions": ("minimize",),
        "number": 0,
        "attempt": 1,
        "seed": 1,
        "started": "2026-01-01T00:00:00",
        "resources": Resources(cpus=1, gpus=0),
        "objective": ObjectiveRef(file=str(file), module=file.stem, name=name),
    }
    return Assignment(**{**plain, **fields})


def drain_until(shell: Shell, found: Callable[[Message], bool]) -> tuple[list[Message], bool]:
    """All messages so far up to a moment when one was found, and whether the rank has ended."""
    deadline = time.monotonic() + 60
    while True:
        batch = shell.drain(0, 1, [], 1.0)
        messages = [decode(line) for _, line in batch.messages]
        if batch.ended or any(found(message) for message in messages):
            return messages, batch.ended
        assert time.monotonic() < deadline, messages


def until_ended(shell: Shell) -> Outcome:
    messages, ended = drain_until(shell, lambda message: False)
    assert ended
    assert isinstance(messages[-1], Finished)
    return messages[-1].outcome


def attribute(messages: list[Message]) -> Any:
    (found,) = [message.value for message in messages if isinstance(message, UserAttr)]
    return found


def test_a_question_is_answered_and_the_outcome_is_the_last_message(shell: Shell, file: Path) -> None:
    info = shell.start([assignment(file, "quadratic")], Place()).placed
    assert info.pid > 0
    messages, _ = drain_until(shell, lambda message: isinstance(message, Question))
    (question,) = messages
    assert isinstance(question, Sample)
    shell.drain(0, 1, [Answer(id=question.id, value=0.5)], 0)
    assert until_ended(shell) == Outcome(reason=Reason.COMPLETE, values=(0.25,))
    assert is_gone(info.pid)


def test_a_start_that_is_repeated_forks_no_second_child(shell: Shell, file: Path) -> None:
    given = [assignment(file, "quadratic", number=77)]
    placed = shell.start_again(given, Place()).placed  # the first did not come
    assert shell.start_again(given, Place()).placed == placed
    assert shell.start(given, Place()).placed == placed  # it was late
    messages, _ = drain_until(shell, lambda message: isinstance(message, Question))
    shell.drain(0, 1, [Answer(id=question_of(messages).id, value=0.5)], 0)
    assert until_ended(shell) == Outcome(reason=Reason.COMPLETE, values=(0.25,))
    begun = shell.start_again(given, Place())
    assert begun.placed == placed
    assert begun.batch.ended


def question_of(messages: list[Message]) -> Question:
    (question,) = [message for message in messages if isinstance(message, Question)]
    return question


def test_with_torch_a_zygote_ends_without_a_word(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = Shell(f"{RUN}-torch", cpus=1, hide_gpus=True, preload=("torch",))
    try:
        made.start([assignment(file, "reports")], Place())
        assert until_ended(made).reason == Reason.COMPLETE
    finally:
        made.shutdown(1)
    assert capfd.readouterr().err == ""  # torch's finalizers would complain in Python's own end


def test_a_drain_repeats_what_is_not_acknowledged_and_forgets_what_is(shell: Shell, file: Path) -> None:
    shell.start([assignment(file, "reports")], Place())
    until_ended(shell)
    first = shell.drain(0, 1, [], 0).messages
    assert [seq for seq, _ in first] == list(range(1, 502))
    assert shell.drain(0, 1, [], 0).messages == first
    assert shell.drain(0, 1, [], 0, seen=499).messages == first[499:]
    assert shell.drain(500, 1, [], 0).messages == first[500:]
    assert shell.drain(0, 1, [], 0).messages == first[500:]


def test_what_a_rank_prints_is_told_while_it_runs(shell: Shell, file: Path) -> None:
    shell.start([assignment(file, "prints")], Place())
    for text, question in (("first line\n", "x"), ("first line\nsecond line\n", "y")):

        def is_told(message: Message, text: str = text) -> bool:
            return message == Output(text=text)

        messages, ended = drain_until(shell, is_told)
        assert not ended
        asked = [one for one in messages if isinstance(one, Sample)][-1]
        assert asked.name == question
        shell.drain(0, 1, [Answer(id=asked.id, value=0.5)], 0)
    assert until_ended(shell).reason == Reason.COMPLETE


def test_a_full_outbox_makes_the_rank_wait_and_loses_nothing(
    shell: Shell, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shells, "OUTBOX", 20)
    shell.start([assignment(file, "reports")], Place())
    steps: list[int] = []
    deadline = time.monotonic() + 60
    ended, seen = False, 0
    while not ended:
        batch = shell.drain(seen, 1, [], 0.05)
        assert len(batch.messages) <= 21  # the end itself needs no room
        for seen, line in batch.messages:  # noqa: B007
            message = decode(line)
            steps += [message.step] if isinstance(message, Report) else []
        ended = batch.ended
        assert time.monotonic() < deadline
    assert steps == list(range(500))


def test_calls_of_a_driver_that_was_taken_over_are_refused(file: Path) -> None:
    made = Shell(RUN, cpus=1, hide_gpus=True, preload=())
    try:
        made.drain(0, 5, [], 0)
        with pytest.raises(StaleEpoch, match="epoch 4 is over, the study's driver has epoch 5"):
            made.drain(0, 4, [], 0)
        with pytest.raises(StaleEpoch):
            made.start([assignment(file, "quadratic", epoch=4)], Place())
    finally:
        made.shutdown(5)


@pytest.mark.parametrize(
    ("name", "message", "tail"),
    [("ends", "exited with code 3", "last words"), ("segfaults", "was killed by SIGSEGV", "")],
)
def test_an_end_without_a_word_is_told_by_code_or_signal(
    shell: Shell, file: Path, name: str, message: str, tail: str
) -> None:
    shell.start([assignment(file, name)], Place())
    assert until_ended(shell) == Outcome(reason=Reason.RANK_LOST, message=message, log_tail=tail)


def test_the_last_that_a_rank_printed_stays_also_where_it_ended_well(shell: Shell, file: Path) -> None:
    shell.start([assignment(file, "prints_lines")], Place())
    outcome = until_ended(shell)
    assert (outcome.reason, len(outcome.log_tail)) == (Reason.COMPLETE, LAST)
    assert outcome.log_tail.endswith("epoch 498\nepoch 499\n")
    shell.start([assignment(file, "reports")], Place())
    assert until_ended(shell) == Outcome(reason=Reason.COMPLETE, values=(0.0,))


def test_an_objective_may_close_its_output(shell: Shell, file: Path) -> None:
    shell.start([assignment(file, "closes_its_output")], Place())
    assert until_ended(shell) == Outcome(reason=Reason.COMPLETE, values=(0.0,), log_tail="before\n")


def test_a_forked_process_that_returns_too_does_not_end_the_trial(shell: Shell, file: Path) -> None:
    shell.start([assignment(file, "forks_and_both_return")], Place())
    assert until_ended(shell) == Outcome(reason=Reason.COMPLETE, values=(3.0,))


def test_a_rank_that_closed_its_files_says_so_in_its_output(shell: Shell, file: Path) -> None:
    shell.start([assignment(file, "closes_all_files")], Place())
    outcome = until_ended(shell)
    assert outcome.message == "exited with code 1"
    assert outcome.log_tail.strip().endswith("close only files that it has opened")


def test_a_killed_rank_is_told_by_its_signal_and_the_same_zygote_forks_the_next(
    shell: Shell, file: Path
) -> None:
    info = shell.start([assignment(file, "waits")], Place()).placed
    zygote = psutil.Process(info.pid).ppid()
    drain_until(shell, lambda message: isinstance(message, Report))
    os.kill(info.pid, signal.SIGKILL)
    assert until_ended(shell).message == "was killed by SIGKILL"
    shell.start([assignment(file, "tells", attempt=2)], Place())
    messages, _ = drain_until(shell, lambda message: False)
    assert attribute(messages)["zygote"] == zygote


def test_a_stopped_rank_is_killed(shell: Shell, file: Path) -> None:
    info = shell.start([assignment(file, "waits")], Place()).placed
    drain_until(shell, lambda message: isinstance(message, Report))
    os.kill(info.pid, signal.SIGSTOP)
    shell.kill(1, 0)
    assert until_ended(shell).message == "was killed by SIGKILL"
    assert is_gone(info.pid)


def test_a_helper_in_a_session_of_its_own_ends_with_the_rank(shell: Shell, file: Path) -> None:
    shell.start([assignment(file, "leaves_a_helper")], Place())
    messages, ended = drain_until(shell, lambda message: False)
    assert ended
    assert is_gone(attribute(messages))


def test_the_wish_to_stop_reaches_the_rank(shell: Shell, file: Path) -> None:
    shell.start([assignment(file, "obeys")], Place())
    shell.stop(1, 0)
    assert until_ended(shell).reason is Reason.INTERRUPTED


def test_when_the_zygote_dies_its_rank_and_helpers_end_and_another_takes_the_next_attempt(
    shell: Shell, file: Path
) -> None:
    info = shell.start([assignment(file, "leaves_a_helper_and_waits")], Place()).placed
    messages, _ = drain_until(shell, lambda message: isinstance(message, Report))
    helper = attribute(messages)
    os.kill(psutil.Process(info.pid).ppid(), signal.SIGKILL)
    assert until_ended(shell).message == "was lost: the process that it was forked from died"
    assert is_gone(info.pid)
    assert is_gone(helper)
    shell.start([assignment(file, "tells", attempt=2)], Place())
    assert until_ended(shell).reason is Reason.COMPLETE


def test_a_rank_finds_the_process_of_a_script(shell: Shell, file: Path, tmp_path: Path) -> None:
    given = assignment(file, "tells", number=7, folder=str(tmp_path), env={"GIVEN": "1"})
    folder = working_folder.folder_of(shell.ready()["folder"], str(tmp_path))
    shell.start([given], Place(folder=folder))
    messages, _ = drain_until(shell, lambda message: False)
    told = attribute(messages)
    assert told.pop("zygote") > 1
    assert told == {
        "blocked": 0,
        "interrupt": True,
        "terminate": True,
        "main": True,
        "threads": 1,
        "leader": True,
        "folder": folder,
        "environment": {
            "TUNER_RUN": RUN,
            "TUNER_TRIAL": "7",
            "TUNER_STUDY": "s",
            "GIVEN": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TUNER_STORAGE": None,  # what names a database, with its password, is the driver's
            "PGPASSWORD": None,
        },
    }


HOLDER = """
import pickle, sys, time
from tuner.channel import Place
from tuner.dispatch import shell as shells
shells.WITHOUT_DRIVER = float(sys.argv[1])
shell = shells.Shell(sys.argv[2], 1, True, ())
info = shell.start([pickle.load(open(sys.argv[3], "rb"))], Place()).placed
print(info.pid, shell._folder, flush=True)
time.sleep(600)
"""


def hold(
    tmp_path: Path, file: Path, run: str, without_driver: float
) -> tuple[subprocess.Popen[str], int, Path]:
    """A shell in a process of its own, whose rank waits for ever; its rank and folder."""
    request = tmp_path / "assignment"
    request.write_bytes(pickle.dumps(assignment(file, "leaves_a_helper_and_waits")))
    command = [sys.executable, "-c", HOLDER, str(without_driver), run, str(request)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    pid, folder = holder.stdout.readline().split()
    return holder, int(pid), Path(folder)


def until_nothing_is_left(run: str, folder: Path) -> None:
    deadline = time.monotonic() + 10
    while marked(run) or folder.exists():
        assert time.monotonic() < deadline, [psutil.Process(pid).cmdline() for pid in marked(run)]
        time.sleep(0.02)


def test_a_killed_shell_leaves_no_process_and_no_file(tmp_path: Path, file: Path) -> None:
    run = f"{RUN}-killed"
    holder, rank, folder = hold(tmp_path, file, run, 60)
    assert rank in marked(run)
    holder.kill()
    holder.wait(timeout=10)
    until_nothing_is_left(run, folder)


KILLED_AS_IT_ASKS = """
import os, pickle, signal, sys, time
from tuner.channel import Place
from tuner.dispatch import shell as shells, zygote

shell = shells.Shell(sys.argv[1], 1, True, ())
while not shell._nursery.zygote:
    time.sleep(0.01)
os.kill(shell._nursery.zygote, signal.SIGSTOP)
print(shell._nursery.zygote, shell._folder, flush=True)
ask = zygote.request
def last(*arguments, **named):
    ask(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
zygote.request = last
shell.start([pickle.load(open(sys.argv[2], "rb"))], Place())
"""


def test_a_shell_that_is_killed_as_it_asks_for_a_rank_leaves_nothing(
    tmp_path: Path, file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, request = f"{RUN}-asks", tmp_path / "assignment"
    request.write_bytes(pickle.dumps(assignment(file, "quadratic")))
    command = [sys.executable, "-c", KILLED_AS_IT_ASKS, run, str(request)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        zygote, folder = holder.stdout.readline().split()
        assert holder.wait(timeout=20) == -signal.SIGKILL
    os.kill(int(zygote), signal.SIGCONT)
    until_nothing_is_left(run, Path(folder))
    assert "Traceback" not in capfd.readouterr().err


def test_a_shell_that_no_driver_drains_ends_itself(tmp_path: Path, file: Path) -> None:
    run = f"{RUN}-alone"
    holder, _, folder = hold(tmp_path, file, run, 1.0)
    assert holder.wait(timeout=20) == 0
    until_nothing_is_left(run, folder)


def test_a_shell_imports_neither_torch_nor_optuna() -> None:
    code = "import sys, tuner.dispatch.shell; print({'ray', 'torch', 'optuna'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_attempts_that_are_practised_leave_nothing_but_what_python_learned() -> None:
    code = """
import gc, os, sys, threading
import optuna
from tuner.dispatch.practice import practise

def state():
    modules = {name for name in sys.modules if name.partition(".")[0] not in ("tuner", "storage")}
    files = sorted(os.listdir("/proc/self/fd"))
    return files, dict(os.environ), os.getcwd(), threading.active_count(), modules, list(sys.path)

practise()  # imports what it needs
before = state()
practise()
print(state() == before, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True False\n", "")


def test_what_cannot_be_looked_up_ahead_is_the_attempts_to_say(shell: Shell, file: Path) -> None:
    unreadable = Draw(value=0.0, distribution="{}")
    shell.start([assignment(file, "quadratic", params={"x": unreadable})], Place())
    outcome = until_ended(shell)
    before = shell._nursery.zygote
    assert outcome.reason is Reason.EXCEPTION
    assert "json_to_distribution" in outcome.traceback
    shell.start([assignment(file, "ends")], Place())
    assert until_ended(shell).reason is Reason.RANK_LOST
    assert shell._nursery.zygote == before


def test_a_package_that_cannot_be_imported_ahead_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "halfway").mkdir()
    wanted = "from halfway import part\nif 'BACKEND' not in __import__('os').environ: raise ImportError\n"
    (tmp_path / "halfway" / "__init__.py").write_text(wanted + "import beside_halfway\n")
    (tmp_path / "halfway" / "part.py").write_text("import beside_halfway")
    (tmp_path / "beside_halfway.py").write_text("")
    code = "import sys; from tuner.dispatch.zygote import _import; _import('halfway')\n"
    code += "print(sorted(name for name in sys.modules if 'halfway' in name))"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['beside_halfway']\n"  # whole; a package of C cannot be begun a second time
