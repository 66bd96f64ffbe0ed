"""A program that uses a study, in a process of its own that can be killed; for the store's state machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage

from storage import SqlStorage, faultpoint

__all__ = ["Dead", "Operation", "Program", "outcome", "picture"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])

_ERRORS = (UpdateFinishedTrialError, KeyError, ValueError)


class Dead(Exception):
    """The program was killed before it answered: whether the operation was carried out is unknown."""


class Operation(NamedTuple):
    """One call of Optuna's storage interface; a trial is given by its number."""

    method: str
    number: int | None
    arguments: tuple[Any, ...]


def outcome(storage: BaseStorage, study_id: int, operation: Operation) -> Any:
    """What the call returned, or the name of what it raised; never an id, which differs by storage."""
    method, number, arguments = operation
    try:
        if number is None:
            getattr(storage, method)(study_id, *arguments)
            return None
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return getattr(storage, method)(trial_id, *arguments)
    except _ERRORS as error:
        return next(known.__name__ for known in _ERRORS if isinstance(error, known))


def picture(storage: BaseStorage, study_id: int) -> list[Any]:
    """All that a study holds, to be compared with ``==`` (NaN equals NaN)."""
    return [
        repr(sorted(storage.get_study_user_attrs(study_id).items())),
        *(
            repr(
                (
                    trial.number,
                    trial.state.name,
                    trial._values,
                    sorted(trial.params.items()),
                    sorted(trial.distributions.items()),
                    sorted(trial.user_attrs.items()),
                    sorted(trial.system_attrs.items()),
                    sorted(trial.intermediate_values.items()),
                    trial.datetime_start is None,
                    trial.datetime_complete is None,
                )
            )
            for trial in storage.get_all_trials(study_id, deepcopy=False)
        ),
    ]


class Program:
    """A process with a :class:`SqlStorage` of its own.

    Args:
        leased: it holds the study's lease all its life.
    """

    def __init__(self, url: str, study_name: str, *, leased: bool) -> None:
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(url, study_name, leased, theirs))
        self._process.start()
        theirs.close()
        self.ask("ready")

    def do(self, operation: Operation) -> Any:
        """The operation's outcome in that process. Raises Dead where it was killed meanwhile."""
        return self.ask("do", operation)

    def ask(self, request: str, *given: Any) -> Any:
        try:
            self._pipe.send((request, given))
            assert self._pipe.poll(60), f"no answer to {request} {given}"
            answer, failure = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(30)
            raise Dead from error
        assert failure is None, failure
        return answer

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        assert self._process.pid is not None
        if self._process.is_alive():
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join(30)

    def end(self) -> None:
        """Leave the lease and exit."""
        self.ask("end")
        self._process.join(30)


def _serve(url: str, study_name: str, leased: bool, pipe: Connection) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = SqlStorage(url)
    study_id = storage.get_study_id_from_name(study_name)
    with storage.lease(study_name) if leased else contextlib.nullcontext() as held:
        while True:
            request, given = pipe.recv()
            answer, failure = None, None
            try:
                if request == "end":
                    break
                if request == "do":
                    answer = outcome(storage, study_id, *given)
                elif request == "picture":
                    if held is not None:
                        held.refresh()
                    answer = picture(storage, study_id)
                elif request == "flush" and held is not None:
                    held.flush()
                elif request == "die at":
                    _arm(*given)
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
            pipe.send((answer, failure))
    pipe.send((None, None))


def _arm(point: str, passages: int = 1) -> None:
    """As ``TUNER_FAULT`` does at the start of a process."""
    faultpoint._NAME, faultpoint._COUNT, faultpoint._ACTION = point, str(passages), "kill"


def replay(operations: Sequence[Operation]) -> tuple[optuna.storages.InMemoryStorage, int]:
    """Optuna's own storage in memory after the operations: the model."""
    storage = optuna.storages.InMemoryStorage()
    study_id = storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "model")
    for operation in operations:
        outcome(storage, study_id, operation)
    return storage, study_id
