"""What a rank said and no driver has taken in, kept beside its checkpoints.

A group that has lost its driver, and finds no other, ends itself: what its ranks reported and saved
until then would go with it. It is written here, as the messages that the driver would have had, and
the next driver takes it in before it decides how the trial goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tuner import checkpoint
from tuner.messages import Message, decode

__all__ = ["hear", "keep", "remove"]


def keep(root: str, attempt: int, rank: int, lines: Sequence[str]) -> None:
    """Write messages, as JSON, durably.

    Args:
        root: folder or URI of the trial's checkpoints.

    Raises:
        OSError: the file system refused.
    """
    checkpoint.write_text(_path(root, attempt, rank), "".join(f"{line}\n" for line in lines))


def hear(root: str, attempt: int, ranks: int) -> dict[int, list[Message]]:
    """The messages of each rank that left some, in order; a damaged line ends its rank's."""
    found: dict[int, list[Message]] = {}
    for rank in range(ranks):
        text = checkpoint.read_text(_path(root, attempt, rank))
        for line in (text or "").splitlines():
            try:
                found.setdefault(rank, []).append(decode(line))
            except (json.JSONDecodeError, TypeError, KeyError, ValueError):
                break
    return found


def remove(root: str, attempt: int, ranks: int) -> None:
    """They are in the database now."""
    checkpoint.delete(_path(root, attempt, rank) for rank in range(ranks))


def _path(root: str, attempt: int, rank: int) -> str:
    return f"{root.removeprefix('file://').rstrip('/')}/a{attempt}/last-words-{rank}.jsonl"
