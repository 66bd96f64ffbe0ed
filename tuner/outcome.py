"""How an attempt ended: a reason code, values, and what a person needs to see why."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Outcome", "Reason", "classify_return"]


class Reason(enum.StrEnum):
    """Why an attempt ended. The text is what the database, the pages and ``--json`` show."""

    COMPLETE = "complete"  # the objective returned its value
    PRUNED = "pruned"  # the objective raised TrialPruned
    EXCEPTION = "exception"  # the objective raised
    BAD_VALUE = "bad_value"  # None, text, the wrong number of values
    NAN = "nan"  # the value is not a number
    INFINITE = "infinite"  # an infinity on the winning side
    REFUSED = "refused"  # the store refused a value of the trial (NUL, too long, out of range)
    IMPORT_ERROR = "import_error"  # the objective's file could not be imported on the worker
    RANK_LOST = "rank_lost"  # a rank's process died: signal or exit code in the message
    NODE_LOST = "node_lost"  # the node, or the actor that held the rank, died
    OOM = "oom"  # out of memory: the trial's own doing
    NODE_MEMORY = "node_memory"  # the node ran out of memory, and the trial held no more than it may
    DEVICE_FAILED = "device_failed"  # a GPU did not work, or was not free; it is set aside
    CHECKPOINT_NOT_SAVED = "checkpoint_not_saved"  # the file system took no checkpoint
    STALLED = "stalled"  # no report within stall_timeout
    TIMEOUT = "timeout"  # longer than trial_timeout
    INTERRUPTED = "interrupted"  # the driver was asked to stop; resumable
    PREEMPTED = "preempted"  # the node is to go; resumable
    DRIVER_LOST = "driver_lost"  # the driver died; resumable
    STOPPED = "stopped"  # a person stopped this trial
    FINISHED_ELSEWHERE = "finished_elsewhere"  # another program told the trial first


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of one attempt.

    Attributes:
        reason: the class of the end.
        values: one per objective when ``reason`` is COMPLETE, else empty.
        message: one line: the exception, the signal, the value that was refused.
        traceback: the objective's own traceback, or "".
        exception: qualified name of the exception's type, or "".
        log_tail: the last output of the rank that was the cause, or "".
    """

    reason: Reason
    values: tuple[float, ...] = ()
    message: str = ""
    traceback: str = ""
    exception: str = ""
    log_tail: str = ""


def classify_return(value: Any, directions: Sequence[str]) -> Outcome:
    """What an objective's return value means.

    A number per objective is COMPLETE. ``None``, text and a wrong count are BAD_VALUE, NaN is
    NAN, and an infinity on the winning side (``-inf`` when minimising) is INFINITE, since it
    would stay the best for ever. An infinity on the losing side is an ordinary bad value, as
    ``return float("inf")`` means in Optuna.

    Args:
        value: what the objective returned: a number, or a sequence of them.
        directions: ``"minimize"`` or ``"maximize"`` for each objective.

    Example:
        >>> classify_return(0.5, ["minimize"]).values
        (0.5,)
        >>> classify_return(float("-inf"), ["minimize"]).reason
        <Reason.INFINITE: 'infinite'>
    """
    is_one = isinstance(value, _ONE) or not isinstance(value, Sequence)
    parts = [value] if is_one else list(value)
    if value is None or len(parts) != len(directions):
        wanted = "a number" if len(directions) == 1 else f"{len(directions)} numbers"
        return _bad(f"the objective returned {_shown(value)}; it must return {wanted}")
    values = []
    for part, direction in zip(parts, directions, strict=True):
        number = _as_float(part)
        if number is None:
            return _bad(f"the objective returned {_shown(part)}, which is not a number")
        if math.isnan(number):
            return Outcome(reason=Reason.NAN, message="the objective returned nan")
        if math.isinf(number) and (number > 0) == (direction == "maximize"):
            text = f"the objective returned {number}, which would win every comparison"
            return Outcome(reason=Reason.INFINITE, message=text)
        values.append(number)
    return Outcome(reason=Reason.COMPLETE, values=tuple(values))


_ONE = (float, int, str, bytes, bytearray, memoryview)  # text is a sequence, but of no numbers


def _as_float(value: Any) -> float | None:
    if isinstance(value, str | bytes | bytearray | memoryview):
        return None
    try:
        return float(value)  # NumPy and torch scalars, Decimal
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _bad(message: str) -> Outcome:
    return Outcome(reason=Reason.BAD_VALUE, message=message)


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())  # an array has several lines
    return text if len(text) <= 80 else f"{text[:77]}..."
