"""A study held in memory by a process that stores nothing: the double of ``HeldStudy``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState

from storage.execution import DROPPED
from storage.held import AttemptRecord, CheckpointRecord, CommandRecord, HeldStudy
from storage.held_storage import HeldStorage
from storage.latency import Commits
from storage.studies import StudyRecord
from storage.writes import (
    AddMetric,
    Claim,
    CreateTrial,
    EndAttempt,
    FinishTrial,
    PopWaiting,
    StartAttempt,
    Write,
    attributes_json,
)

__all__ = ["MemoryStudy"]

_STARTED = ("attributes", "relative", "provenance", "ranks", "resumed_step")
_ANSWERED = frozenset({AddMetric, CreateTrial, PopWaiting, Claim, StartAttempt, EndAttempt, FinishTrial})


@dataclass(kw_only=True)
class _Lease:
    """As much of a lease as a study in memory needs: nobody else is there."""

    epoch: int = 1
    lost: bool = False


class MemoryStudy(HeldStudy):
    """A study of this process alone; what is written is applied at once, and ends with the process.

    Events are not kept: nobody can read them afterwards.

    Args:
        record: its name, directions and seed.

    Example:
        >>> held = MemoryStudy(StudyRecord(name="sketch", study_id=1, directions=("minimize",), seed=1))
        >>> held.storage.get_study_name_from_id(1)
        'sketch'
    """

    keeps_events = False

    def __init__(self, record: StudyRecord) -> None:
        lease: Any = _Lease()
        self._begin(lease, record, claims=True)
        self.storage = HeldStorage(self)
        self._attempts: dict[int, dict[int, dict[str, Any]]] = {}  # fields of records, by trial and attempt
        self._logged: dict[tuple[int, int], set[tuple[str, int]]] = {}  # by trial and attempt
        self._created = 0
        self.patience = 0.0

    @property
    def away(self) -> bool:
        return False

    @property
    def returned(self) -> int:
        return 0

    @property
    def commits(self) -> Commits:
        return Commits()

    @property
    def queued(self) -> int:
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

    def attempts(self, trial_id: int | None = None) -> list[AttemptRecord]:
        if trial_id is not None:
            return [AttemptRecord(**fields) for fields in self._attempts.get(trial_id, {}).values()]
        opened = [one for one, records in self._attempts.items() if records[max(records)]["state"] != "ended"]
        found = [record for one in opened for record in self.attempts(one)]
        return sorted(found, key=lambda record: (record.number, record.attempt))

    def checkpoints(self, trial_id: int) -> list[CheckpointRecord]:
        self._checkpoints.setdefault(trial_id, [])
        return super().checkpoints(trial_id)

    def checkpointed(self) -> set[int]:
        return {trial_id for trial_id, records in self._checkpoints.items() if records}

    def commands(self) -> list[CommandRecord]:
        return []

    def logged(self, trial_id: int, attempt: int) -> set[tuple[str, int]]:
        return set(self._logged.get((trial_id, attempt), ()))

    def _apply(self, write: Write) -> Any:
        """What the database would answer; the image itself is changed by the one who writes."""
        if type(write) not in _ANSWERED:
            return None
        match write:
            case CreateTrial(template=template):
                self._created += 1
                if template is None or template.state == TrialState.RUNNING:
                    self._claim(self._created, self._created - 1, 1, attributes_json(template), None)
                return self._created, self._created - 1
            case PopWaiting(trial_id=trial_id, number=number, attributes=attributes):
                self._claim(trial_id, number, 1, attributes, None)
                return True
            case Claim(trial_id=trial_id, number=number, attempt=attempt, attributes=attributes):
                self._claim(trial_id, number, attempt, attributes, write.resumed_step)
            case StartAttempt(trial_id=trial_id, attempt=attempt):
                given = {name: getattr(write, name) for name in _STARTED}
                known = {name: value for name, value in given.items() if value is not None}
                self._change(trial_id, attempt, state="running", **known)
            case EndAttempt(trial_id=trial_id, attempt=attempt, reason=reason, charged=charged):
                return self._change(trial_id, attempt, state="ended", reason=reason, charged=charged)
            case FinishTrial(trial_id=trial_id, end=end):
                if self.image.trial(trial_id).state.is_finished():
                    return DROPPED
                if end is not None:
                    self._apply(end)
                return True
            case AddMetric(trial_id=trial_id, attempt=attempt, name=name, step=step):
                if not self.image.trial(trial_id).state.is_finished():
                    self._logged.setdefault((trial_id, attempt), set()).add((name, step))
        return None

    def _claim(self, trial_id: int, number: int, attempt: int, attributes: str, step: int | None) -> None:
        if self.claims:
            self._attempts.setdefault(trial_id, {})[attempt] = {
                "trial_id": trial_id,
                "number": number,
                "attempt": attempt,
                "state": "claimed",
                "reason": None,
                "charged": False,
                "resumed_step": step,
                "relative": None,
                "attributes": attributes,
                "ranks": None,
                "provenance": None,
            }

    def _change(self, trial_id: int, attempt: int, **fields: Any) -> bool:
        """Change an attempt that is open; whether it was."""
        known = self._attempts.get(trial_id, {}).get(attempt)
        if known is None or known["state"] == "ended":
            return False
        known.update(fields)
        return True
