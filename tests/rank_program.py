"""Runs schedules of what ranks do: real processes, a real TCPStore and gloo group, the real worker.

``python -m tests.rank_program FOLDER`` reads a schedule as a line of JSON and writes what came of it as
another. A schedule has ``ranks`` (for each a list of actions), ``verdicts`` (of the pruner, by ordinal) and
``stop_at`` (how many times rank 0 may look before it is asked to stop; None: it never is). Patience and
farewell are short here, so that a schedule whose ranks have to wait them out takes parts of a second.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import torch
import torch.distributed as dist

from tuner import trial as trials
from tuner import worker
from tuner.agreement import Agreement
from tuner.assignment import Assignment, ObjectiveRef
from tuner.channel import Place
from tuner.messages import Finished, Message, encode
from tuner.resources import Resources

__all__ = ["BOUND", "FAREWELL", "PATIENCE", "main"]

PATIENCE, FAREWELL = 0.1, 0.4
STOPPED = 0.2
"""Seconds that a rank stands still before it is killed: a watchdog in small."""

BOUND = 30.0
"""Seconds after which a rank waits for ever."""

LEAVING = 10.0
"""Seconds that the others get when rank 0 has ended, or one badly: of :mod:`tuner.dispatch.ray_group`."""


class Pipe:
    """One rank's channel: what it says goes to one file, and the driver's answers come from the schedule."""

    def __init__(self, schedule: dict[str, Any], rank: int, path: Path) -> None:
        self._schedule, self._rank = schedule, rank
        self._file = open(path, "w", buffering=1)  # noqa: SIM115  it lives as long as the rank
        self._looks = self._asked = 0

    def note(self, kind: str, *what: Any) -> None:
        self._file.write(json.dumps([kind, *what]) + "\n")

    def send(self, message: Message) -> None:
        if isinstance(message, Finished):
            self.note("finished", encode(message))

    def ask(self, kind: type[Message], **fields: Any) -> Any:
        return self._schedule["verdicts"][fields["ordinal"] - 1]

    def stop_requested(self) -> bool:
        stop_at = self._schedule["stop_at"]
        self._looks += 1
        return self._rank == 0 and stop_at is not None and self._looks > stop_at


def _objective(actions: list[Any], pipe: Pipe, trial: trials.Trial) -> float:
    asked = {"prune": 0, "stop": 0}

    def agree(topic: str, verdict: bool) -> bool:
        asked[topic] += 1
        pipe.note(topic, asked[topic], verdict)
        return verdict

    for step, (action, *given) in enumerate(actions):
        match action:
            case "report":
                trial.report(float(step), step)
            case "prune":
                if agree("prune", trial.should_prune()):
                    raise optuna.TrialPruned
            case "stop":
                if agree("stop", trial.should_stop()):
                    return 0.5
            case "reduce":
                dist.all_reduce(torch.ones(1))
            case "delay":
                time.sleep(given[0] / 1000)
            case "return":
                pipe.note("fate", action)
                return 0.25
            case "raise":
                pipe.note("fate", action)
                raise ValueError(f"rank {trial.rank} is at fault")
            case _:
                pipe.note("fate", action)
                os.kill(os.getpid(), getattr(signal, action))
    return 1.0


def _be_rank(schedule: dict[str, Any], place: Place, path: Path) -> None:
    trials.Agreement = functools.partial(Agreement, patience=PATIENCE)  # type: ignore[assignment,misc]
    worker.FAREWELL = FAREWELL
    os.dup2(os.open(path.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    pipe = Pipe(schedule, place.rank, path)
    assignment = Assignment(
        run="r",
        epoch=1,
        study="s",
        directions=("minimize",),
        number=0,
        attempt=1,
        seed=1,
        started="2026-01-01T00:00:00",
        objective=ObjectiveRef(file="", module="none", name="none"),
        resources=Resources(ranks=place.world_size),
    )
    actions = schedule["ranks"][place.rank]
    worker.run(assignment, place, pipe, lambda trial: _objective(actions, pipe, trial))


def _fork(schedule: dict[str, Any], folder: Path) -> dict[int, int]:
    """The ranks, by process id."""
    size, pids = len(schedule["ranks"]), {}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for rank in range(size):
            pid = os.fork()
            if pid == 0:
                fd = os.dup(listener.fileno()) if rank == 0 else -1
                port = listener.getsockname()[1]
                listener.close()
                place = Place(
                    rank=rank, local_rank=rank, world_size=size, host="127.0.0.1", port=port, listen_fd=fd
                )
                code = 1
                try:
                    _be_rank(schedule, place, folder / f"rank-{rank}")
                    code = 0
                finally:
                    os._exit(code)
            pids[pid] = rank
    return pids


def _attend(pids: dict[int, int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Exit codes by rank, in order of their ends, and the ranks that were left when the time was up."""
    ended: list[tuple[int, int]] = []
    doomed: dict[int, float] = {}
    deadline = time.monotonic() + BOUND
    stuck: list[int] = []
    while pids:
        pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        now = time.monotonic()
        if pid and os.WIFSTOPPED(status):
            doomed[pid] = now + STOPPED
        elif pid:
            rank, code = pids.pop(pid), os.waitstatus_to_exitcode(status)
            ended.append((rank, code))
            if rank == 0 or code:  # as the group does: gloo does not always see that a peer is gone
                doomed = {**dict.fromkeys(pids, now + LEAVING), **doomed}
        if now > deadline and not stuck:
            stuck = sorted(pids.values())
            doomed = dict.fromkeys(pids, now)
        for late in [one for one, when in doomed.items() if when <= now and one in pids]:
            os.kill(late, signal.SIGKILL)
            del doomed[late]
        if not pid:
            time.sleep(0.002)
    return ended, stuck


def main() -> None:
    """Serve schedules until standard input ends."""
    folder = Path(sys.argv[1])
    for line in sys.stdin:
        schedule = json.loads(line)
        began = time.monotonic()
        ended, stuck = _attend(_fork(schedule, folder))
        said = [
            [json.loads(word) for word in (folder / f"rank-{rank}").read_text().splitlines()]
            for rank in range(len(schedule["ranks"]))
        ]
        result = {"ended": ended, "stuck": stuck, "said": said, "seconds": time.monotonic() - began}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
