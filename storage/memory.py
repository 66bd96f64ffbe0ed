"""A study held in memory by a process that stores nothing: the double of ``HeldStudy``."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.errors import Refused
from storage.held import HeldStudy
from storage.held_storage import HeldStorage
from storage.image import StudyImage
from storage.studies import StudyRecord
from storage.writes import CreateTrial, EndAttempt, FinishTrial, PopWaiting, Write

__all__ = ["MemoryStudy"]


@dataclass(kw_only=True)
class _Lease:
    """As much of a lease as a study in memory needs: nobody else is there."""

    epoch: int = 1
    lost: bool = False


class MemoryStudy(HeldStudy):
    """A study of this process alone; what is written is applied at once, and ends with the process.

    Args:
        record: its name, directions and seed.

    Example:
        >>> held = MemoryStudy(StudyRecord(name="sketch", study_id=1, directions=("minimize",), seed=1))
        >>> held.storage.get_study_name_from_id(1)
        'sketch'
    """

    def __init__(self, record: StudyRecord) -> None:
        lease: Any = _Lease()
        self.lease = lease
        self.record = record
        self.claims = True
        self.lock = threading.RLock()
        self.image = StudyImage()
        self.owned: set[int] = set()
        self.endings: dict[int, EndAttempt] = {}
        self.finished_elsewhere: set[int] = set()
        self.refused: dict[int, Refused] = {}
        self.refreshed = time.monotonic()
        self.attributes_set = 0
        self._first_attributes: dict[int, str] = {}
        self._checkpoints = {}
        self.storage = HeldStorage(self)
        self._created = 0

    @property
    def away(self) -> bool:
        return False

    @property
    def returned(self) -> int:
        return 0

    def queue(self, *writes: Write, then: Any = None) -> None:
        results = [self._apply(write) for write in writes]
        if then is not None:
            then(results)

    def flush(self, *writes: Write) -> Sequence[Any]:
        return [self._apply(write) for write in writes]

    def close(self) -> None:
        """Nothing is kept back."""

    def end(self) -> None:
        """Nothing is kept back."""

    def refresh(self) -> None:
        self.refreshed = time.monotonic()

    def _apply(self, write: Write) -> Any:
        """What the database would answer; the image itself is changed by the one who writes."""
        match write:
            case CreateTrial():
                self._created += 1
                return self._created, self._created - 1
            case PopWaiting() | FinishTrial():
                return True
        return None
