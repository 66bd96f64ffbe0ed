"""What a rank says in a series of attempts: whose turn it is, and what each one has printed.

The attempts of a series share the file of their output. Each begins with an empty one, and itself sends
what it has printed: by the time that the shell hears of its end, the next one may be printing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from typing import Any

from tuner.channel import Channel
from tuner.dispatch.pipe import PipeChannel
from tuner.messages import Finished, Message, Turn
from tuner.outcome import Reason

__all__ = ["LAST", "TAIL", "begin", "kept"]

TAIL = 16_384  # bytes of output that are kept with an outcome
LAST = 1024  # bytes of output that stay of a rank that ended well: so its row stays within a page of SQLite


def kept(reason: Reason) -> int:
    """How many bytes of its output stay of a rank that ended for a reason."""
    return LAST if reason in (Reason.COMPLETE, Reason.PRUNED) else TAIL


def begin(channel: PipeChannel, at: int, output: int, *, is_last: bool) -> Channel:
    """Say that it is the turn of an attempt, in the process that runs it; its way to the driver.

    Args:
        at: its place in its series, from 0.
        output: file that it prints to, open for reading too.
        is_last: nothing follows it.
    """
    channel.begin(at)
    if at:
        os.ftruncate(output, 0)
    channel.send(Turn(at=at, pid=os.getpid()))
    return channel if is_last else _Telling(channel, output)


class _Telling:
    """A rank's channel whose last word has with it what the rank has printed."""

    def __init__(self, channel: PipeChannel, output: int) -> None:
        self._channel = channel
        self._output = output

    def send(self, message: Message) -> None:
        if not isinstance(message, Finished):
            self._channel.send(message)
        else:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # an objective may have closed it
                    stream.flush()
            if tail := self._tail(kept(message.outcome.reason)):
                outcome = dataclasses.replace(message.outcome, log_tail=tail)
                message = dataclasses.replace(message, outcome=outcome)
            self._channel.send(message, rings=False)  # the end of the series does

    def ask(self, kind: type[Message], **fields: Any) -> Any:
        return self._channel.ask(kind, **fields)

    def stop_requested(self) -> bool:
        return self._channel.stop_requested()

    def _tail(self, size: int) -> str:
        with contextlib.suppress(OSError):  # an objective may have closed all files that it found
            end = os.fstat(self._output).st_size
            if end:
                return os.pread(self._output, size, max(0, end - size)).decode(errors="replace")
        return ""
