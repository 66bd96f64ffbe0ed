"""What people ask of a driver while it runs: decided by a pure function, carried out, answered.

The commands and their arguments are those of :func:`storage.commands.send`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from storage.held import CommandRecord
from storage.writes import DoneCommand
from tuner.attempts import Running
from tuner.dispatch.base import Executor
from tuner.outcome import Reason
from tuner.study import DrivenStudy

__all__ = ["Commands", "Decision", "Orders", "decide"]


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What holds for a driver until something else is ordered.

    Attributes:
        draining: why nothing new starts and the run ends, as it is recorded; "" as long as it does not.
        paused: nothing new starts, and the run does not end for that.
        most: trials at once at most, instead of what the run was started with; None: that.
    """

    draining: str = ""
    paused: bool = False
    most: int | None = None

    @property
    def phase(self) -> str:
        """As :class:`storage.views.Driving` has it."""
        return "draining" if self.draining else "paused" if self.paused else "running"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a command comes to.

    Attributes:
        orders: that hold from now on.
        result: the answer, ``"done"`` or why not, in one line.
        stop: numbers of the trials that are asked to stop, for ``reason``.
    """

    orders: Orders
    result: str = "done"
    stop: tuple[int, ...] = ()
    reason: Reason = Reason.STOPPED


def decide(name: str, arguments: Any, orders: Orders, running: Collection[int]) -> Decision:
    """What a command comes to.

    Args:
        arguments: as they were read: they may be anything.
        running: numbers of the trials that run.

    Example:
        >>> decide("concurrency", {"most": 0}, Orders(), ()).result
        'concurrency: most is a whole number of at least 1, or null, not 0'
    """
    if not isinstance(arguments, Mapping):
        return Decision(orders=orders, result=f"{name}: the arguments are no JSON object")
    match name:
        case "stop":
            return _stop(arguments.get("now", False), orders, running)
        case "stop_trial":
            return _stop_trial(arguments.get("number"), orders, running)
        case "pause" | "resume":
            if orders.draining:
                why = f"the study is ending ({orders.draining}), and nothing new starts"
                return Decision(orders=orders, result=why)
            return Decision(orders=dataclasses.replace(orders, paused=name == "pause"))
        case "concurrency":
            return _concurrency(arguments.get("most", ""), orders)
    return Decision(orders=orders, result=f"this driver does not know the command {name!r}")


def _stop(now: Any, orders: Orders, running: Collection[int]) -> Decision:
    if not isinstance(now, bool):
        return Decision(orders=orders, result=f"stop: now is true or false, not {now!r}")
    stopped = dataclasses.replace(orders, draining=orders.draining or "stopped by command")
    return Decision(orders=stopped, stop=tuple(running) if now else (), reason=Reason.INTERRUPTED)


def _stop_trial(number: Any, orders: Orders, running: Collection[int]) -> Decision:
    if not isinstance(number, int) or isinstance(number, bool):
        return Decision(orders=orders, result=f"stop_trial: number is a whole number, not {number!r}")
    if number not in running:
        return Decision(orders=orders, result=f"trial {number} is not running")
    return Decision(orders=orders, stop=(number,))


def _concurrency(most: Any, orders: Orders) -> Decision:
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        why = f"concurrency: most is a whole number of at least 1, or null, not {most!r}"
        return Decision(orders=orders, result=why)
    return Decision(orders=dataclasses.replace(orders, most=most))


class Commands:
    """The commands to one driver, and what holds by them.

    Args:
        running: the driver's attempts by number; it changes them.
        grace: seconds that a trial which is asked to stop has to checkpoint.
        tell: queues what the driver does now, for the readers of the database: it is there before the
            answer, so that who has the answer sees it.

    Attributes:
        orders: that hold now.
    """

    def __init__(
        self,
        study: DrivenStudy,
        executor: Executor,
        running: Mapping[int, Running],
        grace: float,
        tell: Callable[[], None],
    ) -> None:
        self._study = study
        self._held = study.held
        self._executor = executor
        self._running = running
        self._grace = grace
        self._tell = tell
        self.orders = Orders()

    def discard_old(self) -> None:
        """What was asked of a driver that is gone is not meant for this one."""
        for command in self._held.commands():
            self._held.queue(
                DoneCommand(command_id=command.command_id, result="no driver was there to do it")
            )

    def carry_out(self) -> None:
        """Answer the commands that wait, oldest first, and carry them out.

        The answer comes first: from then on nobody can take the command back, so that one that was taken
        back is never carried out.
        """
        for command in self._held.commands():
            before = self.orders
            decision = decide(command.name, command.arguments, before, self._unfinished())
            self.orders = decision.orders
            if not self._answer(command, decision.result):
                self.orders = before
                continue
            for number in decision.stop:
                self._executor.stop(number, decision.reason, self._grace)

    def drain(self, why: str) -> None:
        """Start nothing new from now on; the run ends once nothing runs."""
        self.orders = dataclasses.replace(self.orders, draining=why)

    def stop_all(self, reason: Reason) -> None:
        """Ask every running trial to stop."""
        for number in self._unfinished():
            self._executor.stop(number, reason, self._grace)

    def _unfinished(self) -> list[int]:
        return [number for number, running in self._running.items() if not running.ended]

    def _answer(self, command: CommandRecord, result: str) -> bool:
        """Whether the command was still there to be answered."""
        self._tell()
        if not all(self._held.flush(DoneCommand(command_id=command.command_id, result=result))):
            return False
        said = {"name": command.name, "author": command.author, "result": result}
        self._study.event("command", {**(command.arguments or {}), **said})
        return True
