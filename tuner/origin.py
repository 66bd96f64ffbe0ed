"""The trial that a retry repeats: its checkpoint is where the retry starts.

``tuner retry`` makes a new trial of a finished one (:mod:`storage.enqueue`). Until it has a checkpoint
of its own, each of its attempts starts from the newest valid one of its origin, or of that one's origin
in turn; that stays as long as such a retry waits or runs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from optuna.trial import FrozenTrial

from storage import HeldStudy
from storage.tables import RETRY_KEY
from tuner import checkpoint, retention
from tuner.retention import Whole

__all__ = ["Origins"]


class Origins:
    """The origins of the retries of one study."""

    def __init__(self, held: HeldStudy) -> None:
        self._held = held

    def of(self, trial_id: int) -> FrozenTrial | None:
        """The trial whose retry this one is, or None."""
        return next(self._line(self._held.image.trial(trial_id)), None)

    def start(self, trial_id: int) -> Whole | None:
        """The checkpoint from which a retry without one of its own starts, with the attributes that the
        retry then has; None for a trial that is no retry, or where none is left.
        """
        for origin in self._line(self._held.image.trial(trial_id)):
            records = self._held.checkpoints(origin._trial_id)
            found, _ = retention.newest_valid(records, checkpoint.verify)
            if found is not None:
                return dataclasses.replace(found, attributes=self._attributes(trial_id, found))
        return None

    def bring(self, trial_id: int, start: Whole) -> None:
        """Queue for a retry what its origin had said when it saved ``start``: reports, attributes."""
        store, trial = self._held.storage, self._held.image.trial(trial_id)
        for origin in reversed(list(self._line(trial))):  # the nearer one's word stands
            for step, value in origin.intermediate_values.items():
                if step <= start.step:
                    store.set_trial_intermediate_value(trial_id, step, value)
        kept = json.loads(start.attributes)
        for key, value in kept["user"].items():
            store.set_trial_user_attr(trial_id, key, value)
        for key, value in kept["system"].items():
            store.set_trial_system_attr(trial_id, key, value)

    def needed(self, trial_id: int) -> bool:
        """Whether a trial that waits or runs may start from this one's checkpoints."""
        with self._held.lock:
            unfinished = list(self._held.image.unfinished())
        return any(one._trial_id == trial_id for trial in unfinished for one in self._line(trial))

    def _line(self, trial: FrozenTrial) -> Iterator[FrozenTrial]:
        """The origin, its origin, and so on."""
        while True:
            number = trial.system_attrs.get(RETRY_KEY)
            if not isinstance(number, int) or not 0 <= number < trial.number:
                return
            try:
                trial = self._held.image.numbered(number)
            except KeyError:
                return
            yield trial

    def _attributes(self, trial_id: int, found: Whole) -> str:
        """The retry's own ones, and the user's attributes and constraints of the moment of the checkpoint.

        A sampler's and a pruner's belong to the trial that they were made for.
        """
        own = json.loads(self._held.first_attributes(trial_id))
        saved = json.loads(found.attributes)
        constraints = {key: value for key, value in saved["system"].items() if key.startswith("constraints:")}
        user, system = {**saved["user"], **own["user"]}, {**constraints, **own["system"]}
        return json.dumps({"user": user, "system": system})
