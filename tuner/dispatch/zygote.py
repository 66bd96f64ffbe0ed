"""The process that ranks are forked from: it has imported what they need, and holds nothing that lives.

No thread, no CUDA, no Ray, no connection: a fork of it is a fresh process in milliseconds. It
waits for requests of its shell, forks, and reports exact exit codes and signals. When a child
ends, everything that the child left behind is ended too: the zygote is the subreaper of its
tree. When the shell dies, its end of the control socket closes, and the zygote ends all.

Run as ``python -m tuner.dispatch.zygote FD[,FD...] FOLDER [MODULE ...]``: the control socket, or those that
listen for the shells of several (:mod:`tuner.dispatch.ahead`); the first shell's folder, which goes with the
shell, and modules to import once for all ranks.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # of signal, without an enum for each number
import array
import contextlib
import functools
import gc
import importlib
import json
import os
import pickle
import resource
import select
import signal
import socket
import struct
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuner import compiled, shared_folder
from tuner.assignment import Assignment
from tuner.channel import Channel, Place
from tuner.dispatch import ahead, turns, working_folder
from tuner.dispatch.deferral import defer
from tuner.dispatch.pipe import PipeChannel
from tuner.parting import flush_streams, forget_exits, wind_up
from tuner.processes import become_subreaper, die_with_parent, kill_below
from tuner.seeds import seed_everything
from tuner.slate import Slate, is_users_file

__all__ = ["main", "request"]

_HEADER = struct.Struct("!I")
_MAX_FDS = 4
_DEFERRED = ("optuna.progress_bar",)  # it brings tqdm, asyncio and ssl: an eighth of all that is held
_LATER = ("torch._dynamo",)  # what a process's first optimiser imports, 1.4 s: too long for the first rank
_QUIET = 5.0  # seconds from a fork, after which its rank has made its own start
_SPARE = 3  # cores that nobody uses, of which an import may have one
_IDLE = b"."  # what a process says at its desk when it is ready for another attempt


def request(
    control: socket.socket,
    series: Sequence[Assignment],
    place: Place,
    child: int,
    output: int,
    *,
    desk: int = -1,
    listen: int = -1,
    turns: int = -1,
) -> None:
    """Ask a zygote for a rank, or a process that was kept to be one (the shell's side).

    Args:
        control: the shell's end of the zygote's control socket, or of the desk of the one that was kept.
        series: attempts that are begun one after the other, each once the one before it has left nothing.
        child: file descriptor of the rank's end of its channel.
        output: file that becomes the rank's standard output and error.
        desk: socket on which a process that is kept says that it is idle, and gets its next attempt.
        listen: socket on which rank 0 serves its store.
        turns: pipe with a byte for each attempt of the series that may follow the first; whoever takes it
            out decides whether that one begins.
    """
    fields = {"desk": desk, "listen": listen, "turns": turns}
    given = {name: number for name, number in fields.items() if number >= 0}
    body = pickle.dumps((tuple(series), place, tuple(given)))
    descriptors = [child, output, *given.values()]
    packed = array.array("i", descriptors)
    control.sendmsg([_HEADER.pack(len(body))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])
    control.sendall(body)


def main() -> None:
    """Serve one shell until it goes, and end with it."""
    try:
        _live()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)  # Python's own end would run what torch has registered, of which atexit knows no more


def _live() -> None:
    if os.fork():
        # Ray kills the children of its workers when it ends these: the zygote must not be one,
        # or nobody is left to end what the rank had started.
        os._exit(0)
    with contextlib.suppress(OSError):  # Ray's workers are nice; a training need not be, nor its imports
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    given = []
    for number in map(int, sys.argv[1].split(",")):
        given.append(socket.socket(fileno=os.dup(number)))  # select takes none above 1023: who started us may
        os.close(number)  # have many
    preload, later = ["optuna", "tuner.worker", *sys.argv[3:]], list[str]()
    torches = {name for name in sys.argv[3:] if name.partition(".")[0] == "torch"}
    if torches:
        preload = ["torch", *preload]
        later += _LATER if torches != {ahead.GROUPS} else ()
    else:  # torch itself imports as much again, and more
        for name in _DEFERRED:
            defer(name)
    for name in preload:
        _import(name)
    compiled.remember(is_users_file)
    seed_everything(0)  # torch's first seed reads source files, 3 ms in each rank
    with contextlib.suppress(Exception):  # ranks hear what is wrong
        from tuner.dispatch.practice import practise  # optuna comes with it, and torch is to be there first

        practise()
    forget_exits()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # Ray starts its processes with SIGINT blocked
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the driver's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if len(given) > 1:  # once for all, and before Ray is there
        _import_later(later)
    gc.collect()
    gc.freeze()
    own, folder = ahead.hatched(given, sys.argv[2])
    become_subreaper()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # for its children
    wake, wake_write = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    control = ahead.hired(own)
    if control is not None:
        _tell(control, {"ready": os.getpid()})
        _serve(control, wake, wake_write, later)
    _end_children()
    working_folder.remove(folder)
    shared_folder.sweep()  # the last shell of a node may have been killed


def _import(name: str) -> None:
    """Import a module; of one that cannot be, no half of its package stays for an attempt to stumble on."""
    before = set(sys.modules)
    try:
        importlib.import_module(name)
    except Exception:
        package = name.partition(".")[0]
        for left in sys.modules.keys() - before:
            if left.partition(".")[0] == package:
                del sys.modules[left]


def _import_later(names: list[str]) -> None:
    """Import what is left of ``names``, and leave none."""
    if names:
        with warnings.catch_warnings():  # a rank finds the filters that the first has found
            for name in names:
                _import(name)
        names.clear()
        forget_exits()
        gc.collect()
        gc.freeze()


def _serve(control: socket.socket, wake: int, wake_write: int, later: list[str]) -> None:
    """Fork a rank for each request.

    Args:
        later: modules for all ranks but the first, which does not wait for them: imported once it is past
            its start, or before the second.
    """
    line: _Line | None = None
    served = False
    while True:
        wait = _until_quiet() if later and line is not None else None
        readable, _, _ = select.select([control.fileno(), wake], [], [], wait)
        if not readable:
            _import_later(later)
        if wake in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
            line = _reap(line)
        if control.fileno() in readable:
            received = _receive(control)
            if received is None:
                return
            if served:
                _import_later(later)
            served = True
            try:
                line = _Line(control, received, (wake, wake_write))
            except ConnectionError:
                continue  # the shell was killed just after it had asked: the next look says so
            line.fork()


def _until_quiet() -> float:
    """Seconds after a fork for which an import would take cores from the rank's own start."""
    free = len(os.sched_getaffinity(0)) - os.getloadavg()[0]
    return 0.0 if free > _SPARE else _QUIET


@dataclass(frozen=True, kw_only=True)
class _Request:
    series: Sequence[Assignment]
    place: Place
    descriptors: Mapping[str, int]  # child, output, and desk, listen and turns where they were given

    def goes_on(self) -> bool:
        """Whether the next attempt of the series is to begin."""
        return "turns" in self.descriptors and bool(os.read(self.descriptors["turns"], 1))


def _receive(control: socket.socket) -> _Request | None:
    """The next request; None when the shell is gone."""
    try:
        header, descriptors, _, _ = socket.recv_fds(control, _HEADER.size, _MAX_FDS)
        if len(header) < _HEADER.size:
            return None
        (size,) = _HEADER.unpack(header)
        body = bytearray()
        while len(body) < size:
            part = control.recv(size - len(body))
            if not part:
                return None
            body += part
    except ConnectionError:
        return None
    series, place, given = pickle.loads(bytes(body))  # from our own shell, over a private socket
    names = ("child", "output", *given)
    return _Request(series=series, place=place, descriptors=dict(zip(names, descriptors, strict=True)))


class _Line:
    """The attempts of a request, each in a process of its own, one after the other; or the process that is
    kept for all of them.

    Attributes:
        child: its process id.
    """

    def __init__(self, control: socket.socket, request: _Request, wakes: Sequence[int]) -> None:
        self.child = 0
        self._control, self._wakes = control, wakes
        self._request = request
        self._at = self._first = 0
        self._folder = ""  # once it is known that it is as it should be
        with contextlib.suppress(Exception):  # the attempts hear what is wrong
            from tuner import worker

            worker.prepare(request.series)
        descriptors = request.descriptors
        is_kept = "desk" in descriptors  # it makes a channel for each request
        self._channel = None if is_kept else PipeChannel(socket.socket(fileno=descriptors["child"]))

    def fork(self) -> None:
        """Begin the attempt whose turn it is."""
        parent = os.getpid()
        self.child = os.fork()
        if self.child == 0:
            signal.set_wakeup_fd(-1)
            for descriptor in self._wakes:
                os.close(descriptor)
            self._control.close()
            _become_rank(parent, self._run)
        if self._channel is None:
            self._let_go()
        if self._at == 0:  # those that follow say so themselves
            self._first = self.child
            _tell(self._control, {"started": self.child})

    def ended(self, code: int) -> bool:
        """The child has ended, and nothing of it is left; whether another attempt has begun."""
        if code == 0 and self._channel is not None and self._request.goes_on():
            before = self._request.series[self._at]
            self._at += 1
            self._folder = _ready(self._request.place, before, self._request.series[self._at])
            self.fork()
            # Until there is something to do, do nothing: who writes to a page that both have copies it.
            select.select([self._control.fileno(), self._wakes[0]], [], [])
            return True
        if self._channel is not None:
            self._channel.close()  # the shell then knows that nothing follows
            self._let_go()
        _tell(self._control, {"exited": self._first, "code": code})
        return False

    def _run(self) -> None:
        if self._channel is None:
            _run_as_long_as_kept(self._request)
        else:
            _run(self._request, self._at, self._channel, self._folder)

    def _let_go(self) -> None:
        for name, descriptor in self._request.descriptors.items():
            if name != "child" or self._channel is None:  # else the channel has closed it
                os.close(descriptor)


def _become_rank(parent: int, run: Callable[[], object]) -> None:
    """In the child: run the rank, and never return."""
    code = 1
    gc.freeze()  # whoever looks at what there was before copies it, the collector as well as wind_up
    try:
        os.setsid()
        die_with_parent()
        if os.getppid() != parent:  # it died before the kernel was told
            os._exit(1)
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        with contextlib.suppress(OSError):
            score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
            os.write(score, b"900")  # if the kernel has to end something, a rank, no server or driver
            os.close(score)
        run()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(BaseException):
            wind_up()
        os._exit(code)


def _run(request: _Request, at: int, channel: PipeChannel, folder: str = "") -> bool:
    """One attempt; whether it ended well.

    Args:
        folder: where it works, if that is ready.
    """
    from tuner import worker

    assignment, place, output = request.series[at], request.place, request.descriptors["output"]
    for standard in (1, 2):  # by descriptor: what C code and child processes print is caught too
        os.dup2(output, standard)
    if folder:
        with contextlib.suppress(FileNotFoundError):  # its shell has just ended, and this rank will
            os.chdir(folder)
    elif place.folder:
        working_folder.enter(place.folder, assignment.folder, root=assignment.sent)
    for name, value in assignment.env.items():
        os.environ[name] = value
    sys.argv[:] = [assignment.objective.file or assignment.objective.module]
    os.environ["TUNER_STUDY"] = assignment.study
    os.environ["TUNER_TRIAL"] = str(assignment.number)
    if "listen" in request.descriptors:
        place = replace(place, listen_fd=request.descriptors["listen"])
    way: Channel = channel
    if len(request.series) > 1:
        way = turns.begin(channel, at, output, is_last=at + 1 == len(request.series))
    else:
        channel.begin(0)
    well = worker.run(assignment, place, way)
    flush_streams()
    return well


def _ready(place: Place, before: Assignment, following: Assignment) -> str:
    """Put away what an attempt left in its folder, and make that of the next one, which does so itself if
    the answer is "".
    """
    if not place.folder:
        return ""
    try:
        return working_folder.renew(
            place.folder,
            before.home or before.folder,
            before.study,
            before.number,
            linked=following.folder,
            root=following.sent,
        )
    except OSError:
        return ""  # its own to say


def _run_as_long_as_kept(request: _Request) -> None:
    """One attempt after the other, each as in a fresh process, until one ends badly or leaks."""
    slate = Slate()
    with socket.socket(fileno=request.descriptors["desk"]) as desk:
        following: _Request | None = request
        while following is not None and _run_series(following, slate):
            desk.sendall(_IDLE)
            following = _receive(desk)


def _run_series(request: _Request, slate: Slate) -> bool:
    """The attempts of a request in this process; whether it may be kept."""
    try:
        with contextlib.closing(PipeChannel(socket.socket(fileno=request.descriptors["child"]))) as channel:
            folder = ""
            for at, assignment in enumerate(request.series):
                if at and not request.goes_on():
                    return True
                if not slate.run(functools.partial(_run, request, at, channel, folder)):
                    return False
                if slate.wipe():
                    return False
                if at + 1 < len(request.series):
                    folder = _ready(request.place, assignment, request.series[at + 1])
    finally:
        for name in {"output", "turns"} & request.descriptors.keys():
            os.close(request.descriptors[name])
    return True


def _reap(line: _Line | None) -> _Line | None:
    """Collect ended children; when it was the rank, end what it left, then let its line go on."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return line
        if pid == 0:
            return line
        if line is not None and pid == line.child:
            _end_children()
            if not line.ended(os.waitstatus_to_exitcode(status)):
                line = None


def _end_children() -> None:
    """Kill every process below the zygote and wait for each: nothing of an attempt stays."""
    deadline = time.monotonic() + 20
    while _has_children() and time.monotonic() < deadline:
        kill_below(os.getpid())
        time.sleep(0.002)  # a killed one may just have started another: look again


def _has_children() -> bool:
    """Collect those that have ended; whether others are left. Orphans of a rank are among them."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _tell(control: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        control.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
