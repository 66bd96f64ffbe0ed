"""Which checkpoints a trial starts from, and which are no longer needed."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from storage.held import CheckpointRecord
from tuner.assignment import Resume, Shard

__all__ = ["BEST", "Best", "Whole", "expendable", "newest_valid", "unmatched", "whole"]

BEST = 10
"""Finished trials of a study that keep their last checkpoint: the best ones. Those that failed keep
theirs too, for they may be tried again; pruned ones do not."""

_PARTIAL = 16  # steps that lack a rank's part and are kept all the same while the trial runs
_BEHIND = 3  # such steps in a row after which we say so


class Best:
    """The best ``count`` complete trials of a single objective that have a checkpoint.

    Args:
        direction: ``"minimize"`` or ``"maximize"``.

    Example:
        >>> best = Best("minimize", 2)
        >>> [best.offer(trial_id, value) for trial_id, value in [(1, 0.5), (2, 0.1), (3, 0.3), (4, 0.9)]]
        [None, None, 1, 4]
    """

    def __init__(self, direction: str, count: int = BEST) -> None:
        self._sign = 1 if direction == "minimize" else -1
        self._count = count
        self._kept: list[tuple[float, int]] = []

    def offer(self, trial_id: int, value: float) -> int | None:
        """Take in a trial; the id of the one that is no longer among the best, or None."""
        bisect.insort(self._kept, (self._sign * value, trial_id))
        return self._kept.pop()[1] if len(self._kept) > self._count else None


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A checkpoint of which every rank's part is recorded.

    Attributes:
        attributes: JSON of the trial's attributes when it was saved.
    """

    attempt: int
    step: int
    shards: tuple[Shard, ...]
    attributes: str

    @property
    def resume(self) -> Resume:
        """As an attempt receives it."""
        return Resume(attempt=self.attempt, step=self.step, shards=self.shards)


def whole(records: Sequence[CheckpointRecord]) -> list[Whole]:
    """Those checkpoints that have a part of every rank; newest first, as the records are."""
    found = []
    for (attempt, step), group in itertools.groupby(records, key=lambda one: (one.attempt, one.step)):
        parts = list(group)
        if len(parts) < parts[0].world_size:
            continue
        shards = tuple(
            Shard(rank=part.rank, path=part.path, digest=part.digest, size=part.size) for part in parts
        )
        attributes = next((part.attributes for part in parts if part.attributes), None)
        if attributes is not None:
            found.append(Whole(attempt=attempt, step=step, shards=shards, attributes=attributes))
    return found


def newest_valid(
    records: Sequence[CheckpointRecord], verify: Callable[[Shard], bool]
) -> tuple[Whole | None, list[Whole]]:
    """The newest whole checkpoint whose parts are all undamaged, and the damaged ones before it."""
    damaged: list[Whole] = []
    for candidate in whole(records):
        if all(verify(shard) for shard in candidate.shards):
            return candidate, damaged
        damaged.append(candidate)
    return None, damaged


def expendable(
    records: Sequence[CheckpointRecord], keep: int, *, used: Resume | None = None, over: bool = False
) -> list[tuple[int, int]]:
    """(attempt, step) of what can be deleted: all but the ``keep`` newest whole ones.

    Args:
        used: what the running attempt started from, which it may read at any time.
        over: the trial has ended, so that nothing becomes whole any more. Until then parts that are
            newer than the kept ones stay, the newest 16 of them: a rank may be behind.
    """
    complete = [(one.attempt, one.step) for one in whole(records)]
    kept = set(complete[:keep])
    if used is not None:
        kept.add((used.attempt, used.step))
    steps = sorted({(one.attempt, one.step) for one in records})
    if not over:
        oldest = complete[keep - 1] if len(complete) >= keep else (0, 0)
        partial = [one for one in steps if one not in complete and one > oldest]
        kept.update(partial[-_PARTIAL:])
    return [one for one in steps if one not in kept]


def unmatched(records: Sequence[CheckpointRecord], attempt: int) -> str:
    """Why the checkpoints of an attempt do not count, where its ranks do not save the same ones; else "".

    Example:
        >>> part = dict(attempt=1, rank=0, world_size=2, path="", digest="", size=0, attributes="{}")
        >>> unmatched([CheckpointRecord(step=step, **part) for step in (2, 1, 0)], 1)
        'rank 1 saved none of the last 3 steps'
    """
    newest = max((one.step for one in whole(records) if one.attempt == attempt), default=-1)
    parts = [one for one in records if one.attempt == attempt and one.step > newest]
    steps = {one.step for one in parts}
    if len(steps) < _BEHIND:
        return ""
    silent = sorted(set(range(parts[0].world_size)) - {one.rank for one in parts})
    if not silent:
        return f"its ranks saved {len(steps)} different steps"
    ranks = f"rank{'s' if len(silent) > 1 else ''} {', '.join(map(str, silent))}"
    return f"{ranks} saved none of the last {len(steps)} steps"
