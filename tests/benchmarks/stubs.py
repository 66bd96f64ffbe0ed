"""Shells without ranks: they speak the groups' protocol with a driver, and cost next to nothing beside it.

Some dozens live in one actor of Ray, so that a machine of two cores can pretend to be a cluster: every
call of theirs is a real one, over Ray, with the messages that a shell would send.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from tuner.assignment import Assignment
from tuner.channel import Place
from tuner.dispatch.outbox import Outbox
from tuner.dispatch.shell import PACE, Batch, Begun
from tuner.dispatch.surroundings import loopback
from tuner.messages import Answer, Finished, RankInfo, Report, encode
from tuner.outcome import Outcome, Reason

__all__ = ["StubHost", "StubShell"]


class Stub:
    """A shell whose trial reports the time, so many times a second, until a file is there.

    Args:
        over: the file.
        rate: reports a second.
    """

    def __init__(self, over: Path, rate: float) -> None:
        self._over, self._rate = over, rate
        self._outbox = Outbox()
        self._made, self._ended = 0, True
        self._next = 0.0

    def start(self, series: Sequence[Assignment], place: Place, timeout: float = 0.0) -> Begun:
        """Begin to report."""
        self._outbox, self._made, self._ended = Outbox(), 0, False
        self._next = time.time() + 1 / self._rate
        placed = RankInfo(rank=0, host=socket.gethostname(), node="", pid=os.getpid())
        return Begun(placed=placed, batch=Batch())

    async def drain(
        self, after: int, epoch: int, answers: Sequence[Answer], timeout: float, seen: int = 0
    ) -> Batch:
        """As :meth:`tuner.dispatch.shell.Shell.drain`."""
        self._outbox.forget(after)
        await asyncio.sleep(min(PACE, timeout))
        while not self._ended and self._next <= time.time():
            message = Report(step=self._made, value=self._next)
            self._outbox.put(message, encode(message))
            self._made += 1
            self._next += 1 / self._rate
        if not self._ended and self._over.exists():
            self._ended = True
            last = Finished(outcome=Outcome(reason=Reason.COMPLETE, values=(float(self._made),)))
            self._outbox.put(last, encode(last))
        return Batch(messages=self._outbox.above(seen), ended=self._ended)


@ray.remote(num_cpus=0)
class StubHost:
    """So many stubs on one node."""

    def __init__(self, count: int, over: str, rate: float) -> None:
        self._stubs = [Stub(Path(over), rate) for _ in range(count)]

    async def ready(self, index: int) -> dict[str, Any]:
        """As :meth:`tuner.dispatch.ray_shell.RayShell.ready`."""
        context = ray.get_runtime_context()
        known = {"host": socket.gethostname(), "pid": os.getpid(), "loopback": loopback(), "folder": ""}
        return {**known, "node": context.get_node_id(), "address": "127.0.0.1", "devices": (), "packages": ""}

    async def start(self, index: int, *arguments: Any) -> Begun:
        """Of one stub."""
        return self._stubs[index].start(*arguments)

    async def drain(self, index: int, *arguments: Any) -> Batch:
        """Of one stub."""
        return await self._stubs[index].drain(*arguments)

    async def nothing(self, index: int, *arguments: Any) -> None:
        """For calls that only a real shell has something to do for: ping, reply, stop, kill, shutdown."""


class StubShell:
    """What a driver takes for the handle of a shell's actor."""

    def __init__(self, host: Any, index: int) -> None:
        self._host, self._index = host, index

    def __getattr__(self, name: str) -> _Method:
        known = name if name in ("ready", "start", "drain") else "nothing"
        return _Method(getattr(self._host, known), self._index)


class _Method:
    def __init__(self, method: Any, index: int) -> None:
        self._method, self._index = method, index

    def remote(self, *arguments: Any) -> Any:
        """Call it."""
        return self._method.remote(self._index, *arguments)
