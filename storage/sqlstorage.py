"""Optuna's storage interface on a database of ours, and the lease that makes it fast."""

from __future__ import annotations

import contextlib
import copy
import secrets
import threading
import time
import uuid
from collections.abc import Container, Iterator, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from storage import studies
from storage.database import Database
from storage.errors import Held, Unavailable
from storage.held import HeldStudy
from storage.lease import Lease
from storage.shared_storage import SharedStorage

__all__ = ["SqlStorage"]

FRESH = 0.5
"""Seconds after which a holder looks again at what other programs did."""


class SqlStorage(BaseStorage):
    """A SQLite or PostgreSQL database as Optuna's storage; safe under threads and processes.

    Without a lease every call is a transaction of its own, durable when it returns, and every
    read sees what any program committed before it. Numbers are dense, a WAITING trial is popped
    once, and a terminal state is never overwritten. With :meth:`lease` this process takes one
    study: reads come from memory and writes go by group commit, many times faster.

    Args:
        url: ``sqlite:///FILE.db`` or ``postgresql://USER@HOST/NAME``.
        timeout: seconds to wait for another program's lock, and for a connection.

    Raises:
        Unavailable: cannot be reached, or of another schema; nothing was written.

    Example:
        >>> sql = SqlStorage("sqlite:///tuner.db")
        >>> study = optuna.create_study(study_name="fast", storage=sql)
        >>> with sql.lease("fast"):
        ...     study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=20)
        >>> len(study.trials)
        20
    """

    def __init__(self, url: str, *, timeout: float = 30.0) -> None:
        self.url = url
        self._timeout = timeout
        self.database = Database(url, create=True, timeout=timeout)
        self._shared = SharedStorage(self.database)
        self._lock = threading.Lock()
        self._held: dict[int, HeldStudy] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "timeout": self._timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"], timeout=state["timeout"])  # type: ignore[misc]

    def remove_session(self) -> None:
        """Close every connection, as Optuna's storages do; they open again when needed."""
        self.database.dispose()

    @contextlib.contextmanager
    def lease(self, study_name: str, *, duration: float = 15.0) -> Iterator[HeldStudy]:
        """Hold a study for the length of the block: nobody else drives it, and it is fast.

        In the block this object's calls for the study read an image in memory, which takes in
        what other programs did at most half a second late, and write by group commit. Durable
        on return: a new trial, a popped one, a state. Durable within half a second, in order,
        and when ``flush()`` of the yielded object returns: reports, parameters, attributes, and
        finished trials that are added. At the end of the block everything is.

        Args:
            duration: seconds after which another process may take the study over, when this one
                no longer renews its lease.

        Raises:
            Held: another process holds the study, or this object does.
            UnknownStudy: there is none of that name.
            LeaseLost: (in the block, from any call) another process took the study over.
            Unavailable: (in the block) the database is away.
        """
        record = studies.register(
            self.database, study_name, seed=secrets.randbelow(2**31), sampler=None, pruner=None
        )
        if record.study_id in self._held:
            raise Held(f"study {study_name!r} is held by this storage already")
        lease = Lease(
            self.database,
            record.uid,
            study_name=study_name,
            run=f"lease-{uuid.uuid4().hex}",
            duration=duration,
        )
        lease.acquire()
        held = None
        try:
            held = HeldStudy(lease, record, claims=False)
            with self._lock:
                self._held[record.study_id] = held
            yield held
            held.close()
        finally:
            with self._lock:
                self._held.pop(record.study_id, None)
            self._shared.forget(record.study_id)
            if held is not None:
                held.end()
            lease.release()

    # ------------------------------------------------------------------ studies

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return self._shared.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        if study_id in self._held:
            name = self._held[study_id].record.name
            raise Held(f"study {name!r} is held by this storage; leave the lease before you delete it")
        self._shared.delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._of(study_id).set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._of(study_id).set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._shared.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._of(study_id).get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._of(study_id).get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._fresh(study_id).get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._fresh(study_id).get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        for held in list(self._held.values()):
            held.flush()
        return self._shared.get_all_studies()

    # ------------------------------------------------------------------ trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        return self._of(study_id).create_new_trial(study_id, template_trial)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._with(trial_id).set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        return self._with(trial_id).set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._with(trial_id).set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._with(trial_id).set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._with(trial_id).set_trial_system_attr(trial_id, key, value)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self._fresh(study_id).get_trial_id_from_study_id_trial_number(study_id, trial_number)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._with(trial_id).get_trial(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = self._fresh(study_id).get_all_trials(study_id, deepcopy=False, states=states)
        return copy.deepcopy(trials) if deepcopy else trials

    # ------------------------------------------------------------------ who answers

    def _of(self, study_id: int) -> BaseStorage:
        held = self._held.get(study_id)
        return self._shared if held is None else held.storage

    def _fresh(self, study_id: int) -> BaseStorage:
        """Who answers for a study, having looked at what other programs did."""
        held = self._held.get(study_id)
        if held is None:
            return self._shared
        if time.monotonic() - held.refreshed > FRESH:
            held.refreshed = time.monotonic()
            with contextlib.suppress(Unavailable):  # what runs goes on
                held.refresh()
        return held.storage

    def _with(self, trial_id: int) -> BaseStorage:
        """Who answers for a trial."""
        for held in list(self._held.values()):
            if trial_id in held.storage:
                return held.storage
        if self._held:
            held_study = self._held.get(self._shared.study_of(trial_id))
            if held_study is not None:
                held_study.refresh()
                return held_study.storage
        return self._shared
