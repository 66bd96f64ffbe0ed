"""Which checkpoints a trial starts from, and which are no longer needed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from storage.held import CheckpointRecord
from tuner.assignment import Resume, Shard

__all__ = ["Whole", "expendable", "newest_valid", "whole"]


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


def expendable(records: Sequence[CheckpointRecord], keep: int) -> list[tuple[int, int]]:
    """(attempt, step) of what can be deleted: all that is older than the ``keep`` newest whole ones.

    Parts that are not whole yet, and newer than the newest whole one, stay.
    """
    complete = [(one.attempt, one.step) for one in whole(records)]
    if len(complete) < keep:
        return []
    last = complete[keep - 1]
    return sorted({(one.attempt, one.step) for one in records if (one.attempt, one.step) < last})
