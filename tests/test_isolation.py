"""What a trial changes is not seen by the next, whether it has a process of its own or one that is kept."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

import tuner
from storage import Database, reads
from tests.local_cluster import local_cluster
from tests.test_zygote import RUN, assignment, drain_until, until_ended
from tuner.channel import Place
from tuner.dispatch import nursery, working_folder
from tuner.dispatch.shell import Shell
from tuner.messages import UserAttr
from tuner.outcome import Outcome, Reason
from tuner.processes import is_gone, marked
from tuner.slate import MORE_FILES, MORE_MEMORY, Leaks, leak

ISOLATIONS = ("attempt", "shared")

OBJECTIVES = """
import asyncio, decimal, locale, multiprocessing, resource, socket, tempfile, types
import _thread, builtins, ctypes, gc, logging, os, random, signal, subprocess, sys, threading, time, warnings
from pathlib import Path
import optuna
from package_without_a_file.part import SPREAD

SEEN = []

def _line_end():
    sys.stdout.write("a line\\n")
    sys.stdout.flush()
    return open("/proc/self/fd/1", "rb").read()[-2:].hex()

def state():
    import numpy, torch
    return {
        "globals": len(SEEN),
        "environment": [os.environ.get("ADDED"), os.environ.get("PATH")],
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.empty(1).device),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "group": torch.distributed.is_initialized(),
        "draws": [random.random(), numpy.random.rand(), torch.rand(1).item()],
        "logging": [logging.root.level, len(logging.root.handlers), logging.root.manager.disable,
                    logging.getLogger("mine").level, len(logging.getLogger("mine").handlers)],
        "optuna": optuna.logging.get_verbosity(),
        "warnings": len(warnings.filters),
        "signals": [str(signal.getsignal(one)) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)],
        "alarm": signal.getitimer(signal.ITIMER_REAL)[0],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "cores": sorted(os.sched_getaffinity(0)),
        "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
        "start_method": multiprocessing.get_start_method(allow_none=True),
        "timeout": socket.getdefaulttimeout(),
        "collections": gc.get_threshold(),
        "numpy": numpy.geterr(),
        "decimal": decimal.getcontext().prec,
        "umask": os.umask(0o022),
        "path": list(sys.path),
        "recursion": sys.getrecursionlimit(),
        "hook": sys.excepthook is sys.__excepthook__,
        "stdout": sys.stdout is sys.__stdout__,
        "builtins": hasattr(builtins, "mine"),
        "gc": gc.isenabled(),
        "files": sorted(os.listdir(".")),
        "above": sorted(os.listdir("..")),
        "folder": os.getcwd(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "attention": torch.backends.cuda.flash_sdp_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "hooks": len(torch.nn.modules.module._global_forward_hooks),
        "printed": repr(numpy.array([1 / 3])),
        "exit_code": subprocess.run(["false"]).returncode,
        "modules": [name in sys.modules for name in ("made_by_hand", "hidden_by_hand")],
        "importer": type(sys.modules["json"]).__name__,
        "finders": len(sys.meta_path),
        "shown": warnings.showwarning.__module__,
        "locale": locale.setlocale(locale.LC_NUMERIC),
        "temporary": tempfile.gettempdir(),
        "of_c": subprocess.run(["sh", "-c", "echo $OF_C $PATH"], stdout=-1).stdout.decode(),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "scheduler": os.sched_getscheduler(0),
        "oom_score": Path("/proc/self/oom_score_adj").read_text(),
        "rounding": ctypes.CDLL(None).fegetround(),
        "streams": [getattr(one, name) for one in (sys.stdout, sys.stderr)
                    for name in ("encoding", "errors", "line_buffering", "write_through")],
        "line_ends": _line_end(),
        "tensor": str(torch.tensor([1 / 3])),
        "loop": asyncio.get_event_loop_policy().get_event_loop().is_closed(),
        "spread": SPREAD,
    }

class Finder:
    @staticmethod
    def find_spec(*named):
        return None

def changes_everything(trial):
    import numpy, torch
    trial.set_user_attr("pid", os.getpid())
    trial.set_user_attr("state", state())
    SEEN.append(trial.number)
    os.environ["ADDED"] = "1"
    os.environ["PATH"] = "/nowhere"
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.set_num_threads(2)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    logging.getLogger().setLevel(1)
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger("mine").setLevel(1)
    logging.getLogger("mine").addHandler(logging.NullHandler())
    logging.disable(50)
    optuna.logging.set_verbosity(50)
    warnings.simplefilter("error")
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    multiprocessing.set_start_method("spawn")
    socket.setdefaulttimeout(1)
    gc.set_threshold(9, 9, 9)
    numpy.seterr(all="raise")
    decimal.getcontext().prec = 3
    os.umask(0)
    sys.path.insert(0, "/nowhere")
    sys.setrecursionlimit(5000)
    sys.excepthook = print
    sys.stdout.reconfigure(encoding="latin-1", errors="ignore", newline="\\r\\n", write_through=False)
    sys.stderr.reconfigure(line_buffering=True)
    sys.stdout = open(os.devnull, "w")
    os.putenv("OF_C", "1")
    os.putenv("PATH", "/usr/bin:/bin:/nowhere/of/c")
    os.nice(1)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    Path("/proc/self/oom_score_adj").write_text("950")
    ctypes.CDLL(None).fesetround(0x400)
    torch.set_printoptions(precision=1)
    builtins.mine = True
    gc.disable()
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cuda.enable_flash_sdp(False)
    torch.set_autocast_enabled("cpu", True)
    torch.nn.modules.module.register_module_forward_hook(lambda module, given, made: None)
    numpy.set_printoptions(precision=1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.modules["made_by_hand"] = types.ModuleType("made_by_hand")
    sys.modules["hidden_by_hand"] = None
    sys.modules["json"] = 1
    sys.meta_path.insert(0, Finder)
    logging.captureWarnings(True)
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    tempfile.tempdir = os.getcwd()
    asyncio.get_event_loop().close()
    SPREAD.append(1)
    Path("mine.txt").write_text("1")
    Path("../mine.txt").write_text("2")
    os.chdir("/")
    return 0.0

def says_its_pid(trial):
    trial.set_user_attr("pid", os.getpid())
    return 0.0

def leaves_a_child(trial):
    says_its_pid(trial)
    trial.set_user_attr("child", subprocess.Popen(["sleep", "600"]).pid)
    return 0.0

def leaves_an_orphan(trial):
    says_its_pid(trial)
    code = "import subprocess as s; print(s.Popen(['sleep', '600'], stdout=-3, start_new_session=True).pid)"
    made = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    trial.set_user_attr("child", int(made.stdout))
    return 0.0

def leaves_a_thread(trial):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return says_its_pid(trial)

def leaves_a_thread_of_low_level(trial):
    begun = threading.Event()
    def waits():
        begun.set()
        time.sleep(600)
    _thread.start_new_thread(waits, ())
    begun.wait()
    return says_its_pid(trial)

def leaves_a_closed_input(trial):
    sys.stdin.close()
    return says_its_pid(trial)

def leaves_a_low_priority(trial):
    def refused(*given):
        raise PermissionError
    os.setpriority = refused  # as it is for all but root
    os.nice(1)
    return says_its_pid(trial)

def brings_torch(trial):
    import torch
    trial.set_user_attr("pid", os.getpid())
    drawn = torch.rand(1).item()
    trial.set_user_attr("state", [drawn, torch.initial_seed(), str(torch.get_default_dtype())])
    torch.set_default_dtype(torch.float64)
    return 0.0

def leaves_memory(trial):
    sys.kept = getattr(sys, "kept", []) + [bytearray(150 * 2**20)]
    for one in sys.kept:
        one[::4096] = b"1" * len(one[::4096])
    return says_its_pid(trial)

def leaves_files(trial):
    sys.files = getattr(sys, "files", []) + [open(os.devnull) for _ in range(25)]
    return says_its_pid(trial)

def raises(trial):
    says_its_pid(trial)
    raise ValueError("mine")

def is_pruned(trial):
    says_its_pid(trial)
    raise optuna.TrialPruned

def prints_much(trial):
    os.write(1, b"first words")
    line = b"x" * 99 + b"\\n"
    for _ in range(300):
        os.write(1, line * 1000)
    subprocess.run(["echo", "of a child"])
    os.system("printf 'of C code\\n' >&2")
    print("last words")
    while not Path("go").exists():
        time.sleep(0.01)
    return says_its_pid(trial)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("objectives") / "isolation_objectives.py"
    path.write_text(OBJECTIVES)
    (path.parent / "package_without_a_file").mkdir()
    (path.parent / "package_without_a_file" / "part.py").write_text("SPREAD = []")
    return path


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    made = Shell(RUN, cpus=1, hide_gpus=True, preload=("torch",))
    yield made
    made.shutdown(1)
    assert marked(RUN) == []


class Runs:
    """Attempts one after the other in one shell."""

    def __init__(self, shell: Shell, file: Path, home: Path, keep: bool) -> None:
        self.shell, self.file, self.home, self.keep = shell, file, home, keep
        self.number = 0

    def __call__(self, name: str) -> dict[str, Any]:
        """Run an objective; the attributes that it set."""
        self.start(name)
        messages, _ = drain_until(self.shell, lambda message: False)
        until_ended(self.shell)
        return {one.key: one.value for one in messages if isinstance(one, UserAttr)}

    def start(self, name: str) -> None:
        self.number += 1
        folder = working_folder.folder_of(self.shell.ready()["folder"], str(self.home))
        given = assignment(
            self.file, name, number=self.number, folder=str(self.home), keep=self.keep, study="a/study"
        )
        self.shell.start([given], Place(folder=folder))


@pytest.fixture(params=ISOLATIONS)
def runs(request: pytest.FixtureRequest, shell: Shell, file: Path, tmp_path: Path) -> Runs:
    return Runs(shell, file, tmp_path, keep=request.param == "shared")


@pytest.fixture
def kept(shell: Shell, file: Path, tmp_path: Path) -> Runs:
    return Runs(shell, file, tmp_path, keep=True)


def test_what_a_trial_changes_is_not_seen_by_the_next(runs: Runs) -> None:
    (runs.home / "data.csv").write_text("1,2")
    states = [runs("changes_everything") for _ in range(3)]
    assert [one["state"] for one in states[1:]] == [states[0]["state"]] * 2
    assert states[0]["state"]["files"] == ["data.csv"]
    assert len({one["pid"] for one in states}) == (1 if runs.keep else 3)


def test_a_pruned_trial_leaves_a_process_that_can_be_kept_and_one_that_raised_does_not(kept: Runs) -> None:
    pids = [kept(name)["pid"] for name in ("says_its_pid", "is_pruned", "raises", "says_its_pid")]
    assert pids[0] == pids[1] == pids[2] != pids[3]
    assert is_gone(pids[0])


@pytest.mark.parametrize("name", ["leaves_a_child", "leaves_an_orphan"])
def test_processes_that_a_trial_leaves_are_ended_and_its_own_is_not_kept(kept: Runs, name: str) -> None:
    told = kept(name)
    assert kept("says_its_pid")["pid"] != told["pid"]
    assert is_gone(told["child"])


@pytest.mark.parametrize(
    "name",
    [
        "leaves_a_thread",
        "leaves_a_thread_of_low_level",
        "leaves_memory",
        "leaves_files",
        "leaves_a_closed_input",
        "leaves_a_low_priority",
    ],
)
def test_a_process_that_leaks_is_replaced(kept: Runs, name: str) -> None:
    pids = [kept(name)["pid"] for _ in range(4)]
    assert len(set(pids)) > 1


def test_torch_that_comes_within_a_trial_is_seeded_and_put_back_too(file: Path, tmp_path: Path) -> None:
    shell = Shell(RUN, cpus=1, hide_gpus=True, preload=())
    try:
        kept = Runs(shell, file, tmp_path, keep=True)
        states = [kept("brings_torch") for _ in range(2)]
    finally:
        shell.shutdown(1)
    assert states[0] == states[1]
    assert states[0]["state"][1:] == [1, "torch.float32"]


def test_a_process_that_dies_while_it_waits_is_replaced(kept: Runs) -> None:
    pid = kept("says_its_pid")["pid"]
    os.kill(pid, 9)
    zygote = kept.shell._nursery
    assert _within(20, lambda: not zygote._is_free)
    assert kept("says_its_pid")["pid"] != pid


def test_what_is_left_is_named() -> None:
    first = Leaks(files=10, memory=10**9)
    assert leak(first, first) == ""
    assert leak(Leaks(files=10 + MORE_FILES, memory=10**9 + MORE_MEMORY), first) == ""
    assert leak(Leaks(children=2), first) == "2 child processes were left"
    assert leak(Leaks(threads=1), first) == "1 thread was left"
    assert leak(Leaks(device_memory=2**20), first) == "1 MiB of GPU memory were left"
    assert leak(Leaks(files=11 + MORE_FILES), first) == "open files grew from 10 to 43"
    assert leak(Leaks(memory=10**9 + MORE_MEMORY + 1), first) == "memory grew from 954 to 1210 MiB"


def test_what_a_trial_leaves_in_its_folder_is_kept_apart_by_trial(runs: Runs) -> None:
    runs("changes_everything")
    runs("changes_everything")
    kept = sorted(str(path.relative_to(runs.home)) for path in runs.home.rglob("*") if path.is_file())
    assert kept == [
        f"tuner-files/a_study/{number}/{name}" for number in (1, 2) for name in ("above/mine.txt", "mine.txt")
    ]


def test_what_a_trial_prints_is_caught_by_descriptor_and_bounded(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nursery, "MOST", 2**20)
    runs.start("prints_much")
    log = Path(runs.shell.ready()["folder"]) / "output.log"
    assert _within(60, lambda: "last words" in runs.shell._nursery.tail() and log.stat().st_size < 2**20)
    tail = runs.shell._nursery.tail()
    assert tail.splitlines()[-3:] == ["of a child", "of C code", "last words"]
    assert "bytes of output before this were cut]" in log.read_text()
    (runs.home / "go").touch()
    folder = working_folder.folder_of(str(log.parent), str(runs.home))
    (Path(folder) / "go").touch()  # what was made after the trial began is not linked
    outcome = until_ended(runs.shell)
    assert replace(outcome, log_tail="") == Outcome(reason=Reason.COMPLETE, values=(0.0,))
    assert outcome.log_tail
    assert tail.endswith(outcome.log_tail)


def test_what_is_printed_while_the_output_is_cut_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nursery, "MOST", 2**20)
    made = object.__new__(nursery.Nursery)
    made._log = tmp_path / "output.log"
    made._log.write_bytes(b"x" * 2**20 + b"\n")
    look, late = os.fstat, [b"last words\n"]

    def look_and_print(descriptor: int) -> os.stat_result:
        found = look(descriptor)
        if late:
            with made._log.open("ab") as file:
                file.write(late.pop())
        return found

    monkeypatch.setattr(os, "fstat", look_and_print)
    made.trim()
    left = made._log.read_text()
    assert left.startswith("[1,032,204 bytes of output before this were cut]\n")
    assert left.endswith("x\nlast words\n")


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    event = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return True
        event.wait(0.02)
    return False


# ----------------------------------------------------------------- the folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "project" / "scripts"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made.parent / "data").mkdir()
    (made.parent / "data" / "train.csv").write_text("1")
    monkeypatch.chdir(tmp_path)
    return made


def test_a_folder_has_what_the_drivers_has_and_the_one_above_it(home: Path, tmp_path: Path) -> None:
    (tmp_path / "shell").mkdir()
    folder = working_folder.folder_of(str(tmp_path / "shell"), str(home))
    working_folder.enter(folder, str(home))
    assert Path("config.json").read_text() == "{}"
    assert Path("../data/train.csv").read_text() == "1"
    Path("config.json").write_text("changed")  # as the script would
    assert (home / "config.json").read_text() == "changed"
    (home / "config.json").unlink()
    (home / "new.txt").touch()
    working_folder.enter(folder, str(home))
    assert os.listdir(".") == ["new.txt"]


def test_a_link_that_a_trial_deleted_is_back_whatever_the_times_of_the_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working_folder, "_SETTLED", -(10**18))  # at once
    (tmp_path / "shell").mkdir()
    folder = working_folder.folder_of(str(tmp_path / "shell"), str(home))
    for _ in range(2):  # the second sees what the first has linked
        working_folder.enter(folder, str(home))
    linked = os.stat(folder).st_ctime_ns
    tick = tmp_path / "tick"
    while not tick.exists() or tick.stat().st_ctime_ns <= linked:
        tick.touch()  # of a change within one tick of the kernel no file system tells
    for place, change in ((folder, Path("config.json").unlink), (str(home), (home / "new.txt").touch)):
        before = os.stat(place)
        change()
        os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))  # as tar and rsync do
        working_folder.enter(folder, str(home))
        assert sorted(os.listdir(".")) == sorted(one.name for one in home.iterdir())


def test_between_two_attempts_a_folder_is_as_new_whatever_was_changed_in_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working_folder, "_SETTLED", -(10**18))  # at once
    (tmp_path / "shell").mkdir()
    folder = working_folder.folder_of(str(tmp_path / "shell"), str(home))
    above = Path(folder).parent
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: None,  # of which nothing is looked at but times
        Path("config.json").unlink,
        Path("left.txt").touch,
        lambda: (above / "left above.txt").touch(),
        (above / "data").unlink,
        (home / "new.txt").touch,
        lambda: (home.parent / "new above.txt").touch(),
        lambda: shutil.rmtree(folder),
        lambda: None,
    ]
    working_folder.enter(folder, str(home))
    for number, change in enumerate(changes):
        seen = max(os.stat(place).st_ctime_ns for place in (folder, above, home, home.parent))
        tick = tmp_path / "tick"
        while not tick.exists() or tick.stat().st_ctime_ns <= seen:
            tick.touch()  # of a change within one tick of the kernel no file system tells
        os.chdir(folder)
        change()
        assert working_folder.renew(folder, str(home), "s", number) == folder
        of_home = {one.name for one in home.iterdir()} - {working_folder.FILES}
        assert set(os.listdir(folder)) == of_home
        assert set(os.listdir(above)) == {one.name for one in home.parent.iterdir()}
    kept = home / working_folder.FILES / "s"
    assert sorted(str(file.relative_to(kept)) for file in kept.rglob("*.txt")) == [
        "3/left.txt",
        "4/above/left above.txt",
    ]


def test_files_and_folders_move_and_those_of_an_attempt_before_are_replaced(
    home: Path, tmp_path: Path
) -> None:
    (tmp_path / "shell").mkdir()
    folder = working_folder.folder_of(str(tmp_path / "shell"), str(home))
    for text in ("first", "second"):
        working_folder.enter(folder, str(home))
        Path("out").mkdir()
        Path("out/model.txt").write_text(text)
        Path("out/link").symlink_to("/etc/passwd")
        Path("log.txt").write_text(text)
        moved = working_folder.collect(folder, str(home), "s", 3)
    kept = home / "tuner-files" / "s" / "3"
    assert moved == [f"{kept}/log.txt", f"{kept}/out/model.txt"] or sorted(moved) == sorted(
        [f"{kept}/log.txt", f"{kept}/out/model.txt"]
    )
    assert [(kept / name).read_text() for name in ("log.txt", "out/model.txt")] == ["second", "second"]
    assert not (kept / "out" / "link").exists()
    assert os.listdir(folder) == ["config.json"]


def _deep(folder: Path, name: str, depth: int) -> None:
    os.chdir(folder)
    for _ in range(depth):
        os.mkdir(name)
        os.chdir(name)
    os.chdir("/")


@pytest.mark.parametrize(
    "leave",
    [
        lambda folder: _deep(folder, "d" * 250, 20),
        lambda folder: _deep(folder, "d", 1500),
        lambda folder: (folder / "shut").mkdir(mode=0o444),
        lambda folder: folder.chmod(0o555),
        lambda folder: os.mkfifo(folder / "pipe"),
        lambda folder: (shutil.rmtree(folder), folder.write_text("a file")),
        lambda folder: (shutil.rmtree(folder), folder.symlink_to("/usr")),
    ],
    ids=["long paths", "deep", "shut out below", "shut out", "a pipe", "a file", "a link"],
)
def test_whatever_an_attempt_leaves_the_next_one_finds_nothing_of_it(
    leave: Callable[[Path], object], home: Path, tmp_path: Path
) -> None:
    shell = tmp_path / "shell"
    shell.mkdir()
    folder = working_folder.folder_of(str(shell), str(home))
    working_folder.enter(folder, str(home))
    leave(Path(folder))
    assert working_folder.renew(folder, str(home), "s", 0) == folder
    assert os.listdir(folder) == ["config.json"]
    assert not os.path.islink(folder)
    assert os.stat(folder).st_mode & 0o700 == 0o700
    leave(Path(folder))
    os.chdir("/")
    working_folder.remove(str(shell))
    assert os.listdir(tmp_path) == ["project"]


def test_of_a_file_that_does_not_fit_no_part_stays(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "left"
    folder.mkdir()
    (folder / "model.pt").write_text("1")

    def full(source: str, target: Path) -> None:
        target.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(working_folder.shutil, "move", full)
    assert working_folder.collect(str(folder), str(home), "s", 0) == []
    assert [file for file in home.rglob("*") if file.is_file()] == [home / "config.json"]
    assert "model.pt was not kept" in caplog.text
    assert "No space left" in caplog.text


@pytest.mark.parametrize("study", ["..", ".", "../../etc", "x" * 5_000])
def test_a_study_of_any_name_keeps_its_files_below_the_folder_for_them(
    study: str, home: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    (folder / "model.pt").write_text("1")
    (path,) = working_folder.collect(str(folder), str(home), study, 0)
    kept = Path(path).resolve()
    assert kept.read_text() == "1"
    assert kept.parent.name == "0"
    assert kept.parents[2] == (home / working_folder.FILES).resolve()


def test_a_rank_whose_shell_has_ended_brings_back_no_folder(home: Path, tmp_path: Path) -> None:
    shell = tmp_path / "shell"
    shell.mkdir()
    working_folder.enter(working_folder.folder_of(str(shell), str(home)), str(home))
    working_folder.remove(str(shell))
    working_folder.enter(working_folder.folder_of(str(shell), str(home)), str(home))
    assert os.getcwd() == str(home)
    assert sorted(os.listdir(tmp_path)) == ["project"]


def test_of_a_run_that_has_ended_no_folder_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("tuner-mine-a", "tuner-mine-b.gone", "tuner-other-a"):
        (tmp_path / name / "work").mkdir(parents=True)
    working_folder.sweep("mine")
    assert os.listdir(tmp_path) == ["tuner-other-a"]


def test_where_the_drivers_folder_is_not_on_the_node_files_go_with_the_attempt(tmp_path: Path) -> None:
    (tmp_path / "shell").mkdir()
    folder = working_folder.folder_of(str(tmp_path / "shell"), "/not/here")
    working_folder.enter(folder, "/not/here")
    Path("log.txt").touch()
    assert working_folder.collect(folder, "/not/here", "s", 0) == []
    assert os.listdir(folder) == []
    os.chdir("/")


# ----------------------------------------------------------------- as a whole


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster():
        yield


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_isolation_as_users_ask_for_it(
    isolation: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/tuner.db"
    study = tuner.create_study("s", storage=url, sampler="random", seed=1)
    target = f"{file}:changes_everything"
    tuner.optimize(study, target, n_trials=6, max_concurrent=1, isolation=isolation, progress=False)
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 6
    states = [trial.user_attrs["state"] for trial in study.trials]
    for one in states:
        assert {**one, "draws": [], "folder": "", "files": []} == {
            **states[0],
            "draws": [],
            "folder": "",
            "files": [],
        }
        assert "mine.txt" not in one["files"]
    assert len({str(one["draws"]) for one in states}) == 6
    pids = {trial.user_attrs["pid"] for trial in study.trials}
    assert len(pids) == (6 if isolation == "attempt" else 1)
    engine = Database(url, create=False).engine
    assert (tmp_path / "tuner-files" / "s" / "5" / "above" / "mine.txt").is_file()
    assert (tmp_path / "tuner-files" / "s" / "5" / "mine.txt").is_file()
    found = reads.trial(engine, "s", 0)
    assert found is not None
    assert found.attempt_rows[0].reason == "complete"
