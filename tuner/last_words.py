"""What a rank said and no driver has taken in, kept beside its checkpoints.

A group that has lost its driver, and finds no other, ends itself: what its ranks reported and saved
until then would go with it. It is written here, as the messages that the driver would have had, and
the next driver takes it in before it decides how the trial goes on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tuner import checkpoint
from tuner.messages import (
    Constraint,
    Finished,
    Log,
    Message,
    Output,
    Param,
    Question,
    Report,
    Saved,
    SystemAttr,
    Unanswered,
    UserAttr,
    decode,
)
from tuner.outcome import Reason

__all__ = ["hear", "keep", "remove"]

MOST = 2**28
MOST_RANKS = 2**16
"""Bytes of a file that are read; an outbox is bounded too."""


def keep(root: str, attempt: int, rank: int, lines: Sequence[str]) -> None:
    """Write messages, as JSON, durably.

    Args:
        root: folder or URI of the trial's checkpoints.

    Raises:
        OSError: the file system refused.
    """
    checkpoint.write_text(_path(root, attempt, rank), "".join(f"{line}\n" for line in lines))


def hear(root: str, attempt: int, ranks: int, objectives: int) -> dict[int, list[Message]]:
    """The messages of each rank that left some, in order.

    The files lie where others may write: what is no message, or one that no rank could have sent, ends
    its rank's, and a checkpoint counts only below the attempt's own folder.

    Args:
        objectives: values that a complete trial has.
    """
    found: dict[int, list[Message]] = {}
    for rank in range(ranks):
        text = checkpoint.read_text(_path(root, attempt, rank), most=MOST)
        for line in (text or "").splitlines():
            try:
                message = decode(line)
                sound = _is_sound(message, _folder(root, attempt), 0 if rank else objectives)
            except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
                break
            if not sound:
                break
            found.setdefault(rank, []).append(message)
    return found


def _is_sound(message: Message, folder: str, values: int) -> bool:
    """Whether a rank could have sent this: types, ranges, and places."""
    match message:
        case Param(name=str(), value=int() | float(), distribution=str()):
            return True
        case UserAttr(key=str()) | SystemAttr(key=str()):
            return True
        case Report(step=int(), value=int() | float()) | Constraint(key=str(), value=int() | float()):
            return True
        case Output(text=str()):
            return True
        case Log(step=int(), metrics=dict(metrics)):
            return all(isinstance(value, int | float) for value in metrics.values())
        case Saved(step=int(), path=str(path), digest=str(digest), size=int(), world_size=int(ranks)):
            inside = path.startswith(f"{folder}/step-") and ".." not in path and 0 < ranks <= MOST_RANKS
            return inside and re.fullmatch("[0-9a-f]{64}", digest) is not None
        case Saved():
            return False
        case Finished(outcome=outcome):
            texts = (outcome.message, outcome.traceback, outcome.exception, outcome.log_tail)
            numbers = all(isinstance(value, int | float) for value in outcome.values)
            count = values if outcome.reason is Reason.COMPLETE else 0  # rank 0's alone has any
            return all(isinstance(text, str) for text in texts) and numbers and len(outcome.values) == count
    return isinstance(message, Question | Unanswered)


def remove(root: str, attempt: int, ranks: int) -> None:
    """They are in the database now."""
    checkpoint.delete(_path(root, attempt, rank) for rank in range(ranks))


def _folder(root: str, attempt: int) -> str:
    return f"{root.removeprefix('file://').rstrip('/')}/a{attempt}"


def _path(root: str, attempt: int, rank: int) -> str:
    return f"{_folder(root, attempt)}/last-words-{rank}.jsonl"
